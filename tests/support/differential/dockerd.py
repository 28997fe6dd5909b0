"""A Docker daemon of the test's own: private socket, data and namespaces, so that nothing of it outlives the block."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.differential.tree import Layer, Tree, read_layer

_START_S = 60.0
_STOP_S = 30.0
_COMMAND_S = 300.0
# Debian's own client: another one that stands before it on the path may lack its BuildKit client.
_PATH = "/usr/bin:/usr/sbin:/bin:/sbin"

# The first process of a process and mount namespace: when it ends, the kernel ends all else in there. A container of a
# continuous integration may come without control groups mounted; the daemon needs them.
_RUN = """
set -eu
if [ ! -e /sys/fs/cgroup/cgroup.controllers ] && [ ! -d /sys/fs/cgroup/cpuset ]; then
    mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
    cut -d : -f 2 /proc/self/cgroup | while read -r name; do
        [ -n "$name" ] || continue
        mkdir -p "/sys/fs/cgroup/${name#name=}"
        mount -t cgroup -o "$name" cgroup "/sys/fs/cgroup/${name#name=}"
    done
fi
clean() { find /sys/fs/cgroup -depth -type d -path "*/$parent*" -exec rmdir {} + 2>/dev/null || true; }
trap 'kill -TERM $daemon; wait $daemon || true; clean; exit 0' TERM
dockerd "$@" --cgroup-parent "/$parent" &
daemon=$!
wait $daemon || true
clean
"""


_NAMESPACE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private")


class DockerUnavailableError(Exception):
    """There is no daemon to compare with; the text says why."""


class Docker:
    """A running daemon. Thread-safe."""

    def __init__(self, socket: Path, config: Path, version: str) -> None:
        self._socket = socket
        self._config = config
        self.version = version

    def run(
        self, *arguments: str | Path, buildkit: bool = True, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the client to its end, whatever the end is."""
        return subprocess.run(
            ["/usr/bin/docker", "--host", f"unix://{self._socket}", *map(str, arguments)],
            env={"PATH": _PATH, "HOME": str(self._config), "DOCKER_CONFIG": str(self._config), "DOCKER_BUILDKIT": str(int(buildkit))},
            input=stdin, capture_output=True, timeout=_COMMAND_S,
        )  # fmt: skip

    def ok(self, *arguments: str | Path, stdin: bytes | None = None) -> bytes:
        """Run a command that must succeed; its standard output."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, f"docker {arguments}: {done.stderr.decode(errors='replace')}"
        return done.stdout

    def build(
        self, context: Path, tag: str, *, target: str | None = None, args: Mapping[str, str] | None = None,
        buildkit: bool = True, options: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
        """`docker build` with its built-in frontend. RUN gets no network: the daemon has no bridge."""
        words = ["build", "--network", "none", "--tag", tag, *options]
        words += ["--progress", "plain"] if buildkit else []
        words += ["--target", target] if target else []
        for name, value in (args or {}).items():
            words += ["--build-arg", f"{name}={value}"]
        return self.run(*words, context, buildkit=buildkit)

    def save(self, tags: Sequence[str], scratch: Path) -> dict[str, tuple[dict[str, Any], Tree]]:
        """The configuration and the tree of each image, by its tag."""
        archive = scratch / "saved.tar"
        self.ok("save", "--output", archive, *tags)
        layers: dict[str, Layer] = {}
        found: dict[str, tuple[dict[str, Any], Tree]] = {}
        with tarfile.open(archive) as saved:
            names = {member.name: member for member in saved}

            def read(name: str) -> bytes:
                member = names[name]
                if member.issym():
                    member = names[os.path.normpath(f"{os.path.dirname(name)}/{member.linkname}")]
                file = saved.extractfile(member)
                assert file is not None
                return file.read()

            for image in json.loads(read("manifest.json")):
                config = json.loads(read(image["Config"]))
                for name, diff_id in zip(image["Layers"], config["rootfs"]["diff_ids"], strict=True):
                    if diff_id not in layers:
                        layers[diff_id] = read_layer(io.BytesIO(read(name)))
                tree = Tree(layers[diff_id] for diff_id in config["rootfs"]["diff_ids"])
                for tag in image["RepoTags"]:
                    found[tag] = (config, tree)
        archive.unlink()
        return found


@contextmanager
def start_docker() -> Iterator[Docker]:
    """A daemon; it and all that it started are gone after the block. Raises DockerUnavailableError."""
    for program in ("docker", "dockerd", "unshare"):
        if shutil.which(program, path=_PATH) is None:
            raise DockerUnavailableError(f"there is no `{program}` (the package docker.io)")
    with (
        tempfile.TemporaryDirectory(prefix="fbdocker-", dir="/var/tmp", ignore_cleanup_errors=True) as data,
        tempfile.TemporaryDirectory(prefix="fbdocker-", dir="/run", ignore_cleanup_errors=True) as run,
    ):
        socket, log = Path(run, "docker.sock"), Path(data, "log")
        daemon = [
            "--host", f"unix://{socket}", "--data-root", f"{data}/root", "--exec-root", f"{run}/exec", "--pidfile", f"{run}/pid",
            "--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
            "--config-file", f"{data}/none.json",
        ]  # fmt: skip
        Path(data, "none.json").write_text("{}")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*_NAMESPACE, "sh", "-c", _RUN, "sh", *daemon],
                env={"PATH": _PATH, "parent": Path(run).name}, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        try:
            yield _await(process, Path(data), socket, log)
        finally:
            _stop(process)


def _await(process: subprocess.Popen[bytes], data: Path, socket: Path, log: Path) -> Docker:
    docker = Docker(socket, data, "")
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        if socket.exists():
            done = docker.run("version", "--format", "{{.Server.Version}}")
            if done.returncode == 0:
                docker.version = done.stdout.decode().strip()
                _check(docker)
                return docker
        time.sleep(0.1)
    lines = log.read_text(errors="replace").strip().splitlines()
    raise DockerUnavailableError(f"dockerd does not start: {' | '.join(lines[-3:])}")


def _check(docker: Docker) -> None:
    """A daemon that answers may still be unable to run anything, in a container that lacks a privilege."""
    with tempfile.TemporaryDirectory(prefix="fbdocker-") as context:
        Path(context, "busybox").write_bytes(Path("/bin/busybox").read_bytes())
        Path(context, "busybox").chmod(0o755)
        Path(context, "Dockerfile").write_text('FROM scratch\nCOPY busybox /\nRUN ["/busybox", "true"]\n')
        done = docker.build(Path(context), "differential/probe:1")
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise DockerUnavailableError(f"dockerd starts, and cannot build: {' | '.join(said[-4:])}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    # The script in the namespace is unshare's child; it ends the daemon in order. Killing unshare ends all in there.
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        for child in children.read_text().split():
            os.kill(int(child), 15)
        process.wait(_STOP_S)
    except (OSError, subprocess.TimeoutExpired):
        process.kill()
        process.wait()
