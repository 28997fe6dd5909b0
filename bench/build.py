"""What builds cost: cached against Docker's classic builder, a changed file, a further RUN, equal stages, large layers.

All as ratios within one run, the least of several alternating rounds. Needs root, a state with a kernel and the redis example
(`./dev bench` prepares it), busybox-static, gcc, and docker.io for the comparison with Docker, which is left out where its
daemon does not start.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import firebuild
from bench.cold_run import FIREBUILD, measure_bare, prepare_bare
from tests.support.differential.base import make_base
from tests.support.differential.case import BASE
from tests.support.differential.dockerd import Docker, DockerUnavailableError, start_docker

TAG = "bench/build:1"
BOOT = "[internal] boot the build machine"
UNPACK = "[internal] unpack the layer"
SLEEP_S = 5
FEW, MANY = 5, 25
LAYER_MIB = 100
SMALL = f"FROM {BASE}\nWORKDIR /app\nENV A=1\nRUN echo one >one\nRUN echo two >two\nCOPY lib lib\nRUN ls lib >list\nCOPY app .\n"
# What a project of some size has: a dozen steps, and files that Docker's client sends whole each time.
PROJECT_FILES, PROJECT_FILE_BYTES = 3000, 20_000
PROJECT = (
    f"FROM {BASE}\nARG VERSION=1\nENV A=1 B=2\nWORKDIR /app\nRUN echo one >one\nRUN echo two >two\nCOPY lib lib\n"
    'RUN ls lib >list\nRUN ls -R lib >all\nCOPY app .\nLABEL a=b\nEXPOSE 80\nCMD ["/bin/true"]\n'
)
STAGE = f"FROM {BASE} AS {{name}}\nRUN sleep {SLEEP_S} && echo {{name}} >/{{name}}\n"
FILES = f"for i in $(seq {LAYER_MIB}); do dd if=/dev/urandom of=/d/$i bs=1M count=1 2>/dev/null; done"
# Seconds, to the hundredth, of the guest's own clock.
PACK = (
    "start=$(cut -d ' ' -f 1 /proc/uptime); mkdir /f; tar -C /d -cf - . | tar -C /f -xf -; "
    "echo tar $start $(cut -d ' ' -f 1 /proc/uptime)"
)


@dataclass(frozen=True)
class Built:
    """One build: how long it took, and its steps by name: seconds, or None where it was cached; `output`: of all steps."""

    seconds: float
    steps: dict[str, float | None]
    output: str

    @property
    def boots(self) -> int:
        """How many build machines were booted."""
        return sum(name == BOOT for name in self.steps)

    @property
    def runs(self) -> int:
        """How many RUNs were not cached."""
        return sum("] RUN " in name and seconds is not None for name, seconds in self.steps.items())


def build(context: Path, *options: str) -> Built:
    """Build with firebuild and take in its events."""
    begin = time.monotonic()
    done = subprocess.run(
        [FIREBUILD, "rootfs", context, "--tag", TAG, "--network", "none", "--progress", "rawjson", *options],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    seconds = time.monotonic() - begin
    names: dict[int, str] = {}
    starts: dict[int, int] = {}
    steps: dict[str, float | None] = {}
    output = bytearray()
    for line in done.stderr.splitlines():
        if not line.startswith("{"):
            continue
        event: dict[str, Any] = json.loads(line)
        number = event.get("step", 0)
        if event["event"] == "step-started":
            names[number], starts[number] = event["name"], event["at_ns"]
        elif event["event"] == "step-finished":
            steps[names[number]] = (event["at_ns"] - starts[number]) / 1e9
        elif event["event"] == "step-cached":
            steps[names[number]] = None
        elif event["event"] == "step-output":
            output += _bytes(event["data"])
    return Built(seconds, steps, output.decode(errors="replace"))


def _bytes(text: str) -> bytes:
    from base64 import b64decode

    return b64decode(text)


def make_context(folder: Path, dockerfile: str, files: Sequence[str] = ()) -> Path:
    """A new context with small files."""
    folder.mkdir()
    (folder / "Dockerfile").write_text(dockerfile)
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    return folder


def make_project(folder: Path) -> Path:
    """A context of some thousand files that do not compress."""
    context = make_context(folder, PROJECT, ["app/main"])
    for number in range(PROJECT_FILES):
        path = context / "lib" / str(number % 60) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(PROJECT_FILE_BYTES))
    return context


def compare_cached(scratch: Path, base: Path, rounds: int) -> None:
    """Fully cached builds against Docker's classic builder, then one changed file."""
    small = make_context(scratch / "small", SMALL, ["app/main", *(f"lib/{number}" for number in range(50))])
    project = make_project(scratch / "project")
    for context in (small, project):
        build(context)
    try:
        with start_docker() as docker:
            docker.ok("import", base, BASE)
            compare_one(docker, "a small context", small, rounds)
            size_mb = PROJECT_FILES * PROJECT_FILE_BYTES // 10**6
            compare_one(docker, f"{PROJECT_FILES} files, {size_mb} MB", project, rounds)
    except DockerUnavailableError as error:
        say(f"cached build against Docker: left out: {error}")
    for context in (small, project):
        (context / "app" / "main").write_text(str(time.time_ns()))
        changed = build(context)
        say(f"one file changed under a final COPY: {changed.runs} RUNs repeated (0), {changed.seconds:.2f} s")


def compare_one(docker: Docker, name: str, context: Path, rounds: int) -> None:
    """One context, cached on both sides."""
    ours, theirs, boots = [], [], 0
    # The first one fills Docker's cache; firebuild keeps the digests of files that have not changed for two seconds.
    for number in range(rounds + 1):
        begin = time.monotonic()
        done = docker.build(context, TAG, buildkit=False)
        assert done.returncode == 0, done.stderr.decode()
        built = build(context)
        if number:
            theirs.append(time.monotonic() - begin - built.seconds)
            ours.append(built.seconds)
        boots += built.boots
    say(
        f"cached build, {name}: {min(ours):.2f} s; docker build (classic): {min(theirs):.2f} s; "
        f"ratio {min(ours) / min(theirs):.2f} (at most 0.5); {boots} boots (0)"
    )


def measure_runs(scratch: Path, rounds: int, bare_s: float) -> None:
    """What one more trivial RUN costs."""
    contexts = [
        make_context(scratch / f"runs{count}", f"FROM {BASE}\n" + "".join(f"RUN true {n}\n" for n in range(count)))
        for count in (FEW, MANY)
    ]
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for found, context in zip(times, contexts, strict=True):
            found.append(build(context, "--no-cache").seconds)
    each = (min(times[1]) - min(times[0])) / (MANY - FEW)
    say(
        f"one more trivial RUN: {each * 1000:.0f} ms; bare boot: {bare_s:.2f} s; ratio {each / bare_s:.3f} (at most 0.05)"
    )


def measure_stages(scratch: Path, rounds: int) -> None:
    """Two equal sleeping stages against one."""
    one = STAGE.format(name="one")
    single = make_context(scratch / "single", f"{one}FROM {BASE}\nCOPY --from=one /one /\n")
    two = one + STAGE.format(name="two")
    double = make_context(scratch / "double", f"{two}FROM {BASE}\nCOPY --from=one /one /\nCOPY --from=two /two /\n")
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for found, context in zip(times, (single, double), strict=True):
            found.append(build(context, "--no-cache").seconds)
    say(
        f"two sleeping stages: {min(times[1]):.2f} s; one: {min(times[0]):.2f} s; ratio {min(times[1]) / min(times[0]):.2f} "
        "(at most 1.2)"
    )


def measure_layers(scratch: Path) -> None:
    """Unpack, run and capture of a large layer, against tar's packing and unpacking in the same guest."""
    lines = f"FROM {BASE}\nRUN mkdir /d && {FILES}\n"
    build(make_context(scratch / "large", lines))
    copied = f"{lines}RUN cp -a /d /e\nRUN {PACK}\n"
    built = build(make_context(scratch / "copied", copied))
    unpack = sum(seconds for name, seconds in built.steps.items() if name.startswith(UNPACK) and seconds)
    run = next(seconds for name, seconds in built.steps.items() if "RUN cp" in name and seconds)
    start, end = next(line.split()[1:] for line in built.output.splitlines() if line.startswith("tar "))
    tar = float(end) - float(start)
    ours = unpack + run
    say(
        f"{LAYER_MIB} MiB in {LAYER_MIB} files: unpacked at {LAYER_MIB / max(unpack, 0.01):.0f} MiB/s, run and captured at "
        f"{LAYER_MIB / run:.0f} MiB/s; tar in the same guest: {LAYER_MIB / tar:.0f} MiB/s; ratio of times {ours / tar:.2f}"
    )


def say(line: str) -> None:
    """One result."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    """Run everything and print a line for each."""
    parser = argparse.ArgumentParser(prog="build", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--state", type=Path, default=Path(os.environ.get("FIREBUILD_STATE", "/var/lib/firebuild")))
    options = parser.parse_args(arguments)
    # As whoever installs a package has it compiled; a source tree that was just changed has not.
    compileall.compile_dir(Path(firebuild.__file__).parent, quiet=2)
    with tempfile.TemporaryDirectory(prefix="firebuild-bench-", dir="/var/tmp") as name:
        scratch = Path(name)
        base = make_base(scratch)
        subprocess.run([FIREBUILD, "image", "import", base, BASE], check=True, stdout=subprocess.DEVNULL)
        compare_cached(scratch, base, options.rounds)
        bare = prepare_bare(options.state, scratch)
        measure_runs(scratch, options.rounds, min(measure_bare(*bare) for _ in range(options.rounds)))
        measure_stages(scratch, options.rounds)
        measure_layers(scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
