"""Options of builds and what instructions do in the machine: a base, an image with everything in it, one machine."""

from __future__ import annotations

import io
import json
import ssl
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from firebuild.images.archive import open_layer
from tests.support.cli import BUILD_TIMEOUT_S, Cli
from tests.support.registry import tree_tar
from tests.vm.conftest import BASE

BUILT_ON = "tests/options-base:1"
TAG = "tests/options:1"
NAMES = "options1"
GATEWAY = "192.168.128.1"  # this host, as a build machine sees it

# Nothing here needs a machine.
BASE_FILE = f"""FROM {BASE}
ONBUILD RUN echo triggered by $(id -un) >/trigger
ONBUILD COPY file /onbuild/
ONBUILD ENV FROM_TRIGGER=yes
"""

# The command is what the image's machine shows of itself.
SHOW = """echo "args=$0,$1"; id -u; id -G; pwd; echo "$GREETING $FROM_TRIGGER"
stat -c '%a %U:%G' /vol /made/below "/json vol" /work/deep/rel; cat /vol/kept /trigger /onbuild/file /shell /pre /post
echo written >/vol/new; cat /vol/new
trap 'echo got usr1; exit 7' USR1; echo waiting; while true; do sleep 0.1; done
"""

FILE = f"""# syntax=example/frontend:1
FROM {BUILT_ON}@DIGEST
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN groupadd -g 700 extra && groupadd -g 600 app && useradd -u 600 -g app -G extra -m app
RUN [[ $BASH_VERSION ]] && echo bash >/shell
RUN mkdir /vol && echo kept >/vol/kept && chown -R app:extra /vol && chmod 750 /vol
RUN test ${{#http_proxy}} = 22 && test ${{#HTTP_PROXY}} = 22 && http_proxy= HTTP_PROXY= \\
    /usr/lib/apt/apt-helper download-file https://{GATEWAY}:PORT/hello /tmp/hello && grep -q hello /tmp/hello && rm /tmp/hello
VOLUME /vol
VOLUME ["/made/below", "/json vol"]
WORKDIR /work/deep
WORKDIR rel
ENV GREETING="hello world"
LABEL org.example.a="1 2" b=c
EXPOSE 8080 53/udp 9000-9001
STOPSIGNAL SIGUSR1
HEALTHCHECK --interval=5s --timeout=1500ms --start-period=2s --start-interval=1s --retries=4 CMD test -e /vol/kept
COPY --chmod=755 show /show
USER app
ENTRYPOINT ["/bin/bash", "/show"]
CMD ["one", "two"]
"""


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"hello\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextmanager
def serve_tls(folder: Path) -> Iterator[tuple[int, Path]]:
    """A server whose certificate an authority of its own has signed: its port and the authority's certificate."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "3650", "-subj", "/CN=tests")
    openssl("req", *key, "-keyout", "own.key", "-out", "own.csr", "-subj", "/CN=server")
    (folder / "names").write_text(f"subjectAltName=IP:{GATEWAY},DNS:{GATEWAY}\n")
    openssl("x509", "-req", "-in", "own.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "own.pem",
            "-days", "3650", "-extfile", "names")  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "own.pem", folder / "own.key")
    server = ThreadingHTTPServer(("0.0.0.0", 0), Page)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, folder / "ca.pem"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_everything_that_an_image_says_has_its_effect_in_the_machine(cli: Cli, context: Path, tmp_path: Path) -> None:
    (context / "file").write_text("from the trigger\n")
    (context / "show").write_text(SHOW)
    with serve_tls(tmp_path) as (port, bundle):
        (context / "Dockerfile.base").write_text(BASE_FILE)
        cli.ok("build", "-f", context / "Dockerfile.base", "-t", BUILT_ON, context, timeout_s=BUILD_TIMEOUT_S)
        digest = cli.json("image", "inspect", BUILT_ON)[0]["Digest"]
        text = FILE.replace("DIGEST", digest).replace("PORT", str(port))
        (context / "Dockerfile").write_text(text)
        arguments: list[str | Path] = ["rootfs", context, "--tag", TAG, "--label", "c=d"]
        arguments += ["--build-arg", "BUILDKIT_INLINE_CACHE=1", "--build-arg", "HTTP_PROXY=http://proxy.invalid:1"]
        arguments += ["--mem", "768", "--cpu", "1", "--disk-size", "2g"]
        arguments += ["--pre-build-command", "id -u >/pre", "--post-build-command", "id -u >/post"]
        arguments += ["--metadata-file", tmp_path / "made.json", "--iidfile", tmp_path / "iid", "--ssh-user", "alpine"]
        built = cli.run(
            *arguments,
            "--trust-host-ca",
            environment={"SSL_CERT_FILE": str(bundle), "FIREBUILD_BUILD_ALLOW": "host"},
            timeout_s=BUILD_TIMEOUT_S,
        )
    assert built.status == 0, built.describe()
    for words in (
        "example/frontend:1",
        "--ssh-user has no effect",
        "ONBUILD RUN echo triggered",
        "--pre-build-command",
    ):
        assert words in built.stderr, built.describe()
    assert "BUILDKIT_INLINE_CACHE" not in built.stderr

    inspected = cli.json("image", "inspect", TAG)[0]
    check_config(inspected, tmp_path)
    check_machine(cli)
    check_layers(cli, inspected["Digest"])
    check_cached(cli, context)
    cli.ok("image", "rm", TAG, BUILT_ON)


def check_config(inspected: dict[str, Any], tmp_path: Path) -> None:
    config = inspected["Config"]
    assert config["Labels"] == {"b": "c", "c": "d", "org.example.a": "1 2"}
    assert sorted(config["ExposedPorts"]) == ["53/udp", "8080/tcp", "9000/tcp", "9001/tcp"]
    assert sorted(config["Volumes"]) == ["/json vol", "/made/below", "/vol"]
    assert (config["User"], config["StopSignal"], config["WorkingDir"]) == ("app", "SIGUSR1", "/work/deep/rel")
    assert config["Healthcheck"] == {
        "Test": ["CMD-SHELL", "test -e /vol/kept"], "Interval": 5 * 10**9, "Timeout": 15 * 10**8,
        "StartPeriod": 2 * 10**9, "StartInterval": 10**9, "Retries": 4,
    }  # fmt: skip
    assert "OnBuild" not in config
    assert "proxy.invalid" not in json.dumps(inspected)
    made = json.loads((tmp_path / "made.json").read_text())
    assert made["containerimage.digest"] == made["containerimage.descriptor"]["digest"] == inspected["Digest"]
    assert made["containerimage.config.digest"] == inspected["Id"] == (tmp_path / "iid").read_text()
    assert made["image.name"] == "docker.io/" + TAG
    provenance = made["buildx.build.provenance"]
    [base] = provenance["materials"]
    assert base["uri"].startswith(f"docker-image://docker.io/{BUILT_ON.partition(':')[0]}") and base["digest"]["sha256"]
    assert provenance["invocation"]["parameters"]["args"] == {"build-arg:BUILDKIT_INLINE_CACHE": "1", "label:c": "d"}


def check_machine(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", NAMES, "--network", "none", "--from", TAG)
    cli.await_output(NAMES, "waiting")
    cli.ok("stop", NAMES)
    output = cli.ok("logs", NAMES).splitlines()
    assert output == [
        "args=/show,one", "600", "600 700", "/work/deep/rel", "hello world yes",
        "750 app:extra", "755 root:root", "755 root:root", "755 root:root",
        "kept", "triggered by root", "from the trigger", "bash", "0", "0", "written", "waiting", "got usr1",
    ]  # fmt: skip
    [state] = [json.loads(line) for line in cli.ok("ls", "-a", "--format", "json").splitlines() if NAMES in line]
    assert "7" in json.dumps(state)
    cli.ok("rm", NAMES)


def read_layers(cli: Cli, manifest_digest: str) -> Iterator[tarfile.TarFile]:
    """The layers of a stored image, lowest first."""
    blobs = cli.state / "store" / "blobs" / "sha256"
    for layer in json.loads((blobs / manifest_digest[7:]).read_text())["layers"]:
        with open_layer(blobs / layer["digest"][7:], layer["mediaType"]) as stream:
            data = io.BytesIO(stream.read())
        with tarfile.open(fileobj=data) as archive:
            yield archive


def check_layers(cli: Cli, manifest_digest: str) -> None:
    """The certificates and what stood in for them left nothing: no file, and no folder with another time."""
    layers = [{info.name for info in archive} for archive in read_layers(cli, manifest_digest)]
    steps = layers[-11:]
    assert steps[0] == {"pre"} and steps[1] == {"trigger"} and steps[4] == {"shell"} and steps[5] == {"vol", "vol/kept"}
    assert not {name for name in steps[6] if name.startswith(("etc", "usr"))}
    assert steps[-1] == {"post"}


def check_cached(cli: Cli, context: Path) -> None:
    """Built again: no machine, no network, whatever the proxies and the certificates are now."""
    arguments: list[str | Path] = ["rootfs", context, "--tag", TAG, "--pre-build-command", "id -u >/pre"]
    timed = {"PYTHONPROFILEIMPORTTIME": "1"}
    again = cli.run(*arguments, "--post-build-command", "id -u >/post", "--progress", "rawjson", environment=timed)
    assert again.status == 0 and "build machine: not needed" in again.stderr, again.describe()
    lines = [line for line in again.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip() for line in lines}
    assert "firebuild.build.executor" in imported
    heavy = {
        "firebuild.machine.lifecycle",
        "firebuild.guest.build",
        "firebuild.images.archive",
        "subprocess",
        "tarfile",
    }
    assert not imported & heavy
    events = [json.loads(line) for line in again.stderr.splitlines() if line.startswith("{")]
    assert {"step-started", "step-cached"} <= {event["event"] for event in events}
    shown = json.loads(cli.ok(*arguments, "--post-build-command", "id -u >/post", "--format", "json"))
    assert shown["RepoTags"] == [TAG] and shown["Booted"] is False and shown["Cached"] == shown["Steps"]
    steps = [json.loads(line) for line in cli.ok("cache", "ls", "--format", "json").splitlines()]
    assert "--pre-build-command id -u >/pre" in {step["Description"] for step in steps}


REPEATED = """FROM base AS one
RUN echo one >/one && mkdir -p /d/e && ln -s x /d/link
FROM base
COPY --from=one /d /d
COPY --from=small /etc/motd /motd
COPY file /file
WORKDIR /made
RUN grep -q small /motd && echo two >/two && rm /etc/issue
RUN ! /usr/lib/apt/apt-helper download-file https://GATEWAY:PORT/hello /hello 2>/said && grep -qi certificate /said && rm /said
"""
EPOCH = 1_700_000_000


def test_two_builds_of_one_source_date_are_one_image(cli: Cli, context: Path, tmp_path: Path) -> None:
    """Whichever way their images are named: in the store, in a layout, by a tag or by a digest."""
    (context / "file").write_text("data")
    (tmp_path / "small.tar").write_bytes(tree_tar(b"small"))
    cli.ok("image", "import", tmp_path / "small.tar", "tests/small:1")
    cli.ok("image", "push", "--compression", "keep", "tests/small:1", f"oci:{tmp_path}/layout:1")
    small = cli.json("image", "inspect", "tests/small:1")[0]["Digest"]

    def build(tag: str, base: str, other: str) -> dict[str, Any]:
        contexts = ["--build-context", f"base=docker-image://{base}", "--build-context", f"small={other}"]
        cli.ok(
            "build", context, "-t", tag, "--no-cache", *contexts, timeout_s=BUILD_TIMEOUT_S,
            environment={"SOURCE_DATE_EPOCH": str(EPOCH), "FIREBUILD_BUILD_ALLOW": GATEWAY},
        )  # fmt: skip
        inspected: dict[str, Any] = cli.json("image", "inspect", tag)[0]
        return inspected

    digest = cli.json("image", "inspect", BASE)[0]["Digest"]
    with serve_tls(tmp_path) as (port, _):
        (context / "Dockerfile").write_text(REPEATED.replace("GATEWAY", GATEWAY).replace("PORT", str(port)))
        first = build("tests/same:1", BASE, f"oci-layout://{tmp_path}/layout:1")
        second = build("tests/same:2", f"{BASE}@{digest}", f"oci-layout://{tmp_path}/layout@{small}")
    assert second["RootFS"] == first["RootFS"]
    assert (second["Id"], second["Digest"]) == (first["Id"], first["Digest"])
    assert first["Created"] == "2023-11-14T22:13:20Z"
    times = {}
    for archive in read_layers(cli, first["Digest"]):
        times.update({info.name: info.mtime for info in archive})
    assert {times[name] for name in ("two", "made", "d/e", "d/link")} == {EPOCH}
    cli.ok("image", "rm", "tests/same:1", "tests/same:2", "tests/small:1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"FROM --platform=linux/arm64 {BASE}\n", ["linux/arm64", "linux/amd64"]),
        (f"FROM {BASE}\nRUN --security=insecure true\n", ["--security=insecure", "refused"]),
        (
            f"FROM {BASE} AS builder\nRUN true\nFROM {BASE}\nCOPY --from=biulder /x /\n",
            ["biulder", "did you mean `builder`?"],
        ),
    ],
)
def test_what_is_refused_by_name(cli: Cli, context: Path, text: str, words: list[str]) -> None:
    (context / "Dockerfile").write_text(text)
    refused = cli.refused("build", context, "-t", TAG)
    assert all(word in refused.stderr for word in words), refused.describe()
    assert "time=" not in refused.stderr and "level=" not in refused.stderr
