"""The article that introduced firebuild, walked through: its commands in their order, in a shell, with its own words.

Replaced are the paths, Consul (a server that answers one of its questions), the place of its repository (this host), and the base
operating system by a small one, without an init: the shipped ones are built and booted by the tests of base operating systems.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import BUILD_TIMEOUT_S, PROGRAM, Cli
from tests.support.web import git_backend, make_repository, serve_web
from tests.vm.conftest import SharedState

BASEOS = "FROM debian:bookworm-slim\nRUN useradd --create-home --shell /bin/sh alpine\n"
DOCKERFILE = """FROM debian:bookworm-slim AS releases
ARG CONSUL_VERSION=1.9.4
COPY consul /out/consul
RUN sed -i "s/@VERSION@/$CONSUL_VERSION/" /out/consul

FROM debian:bookworm-slim
ENV HASHICORP_RELEASES=https://releases.hashicorp.com
RUN useradd --system consul && mkdir -p /consul/data
COPY --from=releases --chown=consul /out/consul /usr/local/bin/consul
WORKDIR /consul/data
VOLUME /consul/data
EXPOSE 8500
USER consul
LABEL org.firebuild.init=direct
ENTRYPOINT ["consul"]
CMD ["agent", "-dev", "-client", "0.0.0.0"]
"""
CONSUL = """+x#!/usr/bin/perl
use IO::Socket::INET;
$| = 1;
my $server = IO::Socket::INET->new(LocalPort => 8500, Listen => 8, ReuseAddr => 1) or die "listen: $!";
print "Consul @VERSION@ @ARGV\\n";
while (my $client = $server->accept) {
    while (my $line = <$client>) { last if $line =~ /^\\r?$/; }
    print $client qq(HTTP/1.0 200 OK\\r\\n\\r\\n"127.0.0.1:8300");
    close $client;
}
"""


class Reader:
    """Somebody who types the article's commands. `home`: the article's `/fc`."""

    def __init__(self, cli: Cli, home: Path) -> None:
        self.home = home
        # The state of the tests would win over the profile's: an empty variable counts as none.
        path = f"{PROGRAM.parent}:{os.environ['PATH']}"
        self.environment = {**cli.environment(), "FIREBUILD_STATE": "", "FIREBUILD_RUN": "", "PATH": path}

    def type(self, command: str, *, timeout_s: float = 300.0) -> str:
        """One command line, which must succeed; what it prints."""
        done = subprocess.run(
            ["sh", "-c", command], cwd=self.home, env=self.environment, capture_output=True, text=True, timeout=timeout_s
        )  # fmt: skip
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture
def reader(cli: Cli) -> Iterator[Reader]:
    with tempfile.TemporaryDirectory(prefix="fc-", dir="/var/tmp") as home:
        Path(home).chmod(0o711)
        reader = Reader(cli, Path(home))
        try:
            yield reader
        finally:
            for name in reader.type("firebuild ls -q --profile=standard || true").split():
                reader.type(f"firebuild kill --profile=standard --vmm-id={name}")
            reader.type("firebuild purge --profile=standard || true")


def test_the_article(reader: Reader, shared_state: SharedState, tmp_path: Path) -> None:
    fc, emulator = reader.home, Path(sys.executable).with_name("firecracker-emulator")
    for name in ("jail", "cache", "rootfs", "vmlinux"):
        (fc / name).mkdir(mode=0o711)
    reader.type(f"""firebuild profile-create \\
	--profile=standard \\
	--binary-firecracker=$(readlink -f {emulator}) \\
	--binary-jailer=$(readlink -f /bin/true) \\
	--without-jailer=true \\
	--chroot-base={fc}/jail \\
	--run-cache={fc}/cache \\
	--storage-provider=directory \\
	--storage-provider-property-string="rootfs-storage-root={fc}/rootfs" \\
	--storage-provider-property-string="kernel-storage-root={fc}/vmlinux" """)
    reader.type("firebuild kernel pull --profile=standard --name=vmlinux-v5.8", timeout_s=BUILD_TIMEOUT_S)
    reader.type(f"firebuild image import --profile=standard {shared_state.base_tarball} debian:bookworm-slim")

    file = fc / "baseos/_/debian/bookworm-slim/Dockerfile"
    file.parent.mkdir(parents=True)
    file.write_text(BASEOS)
    reader.type(
        f"""firebuild baseos \\
    --profile=standard \\
    --dockerfile $(pwd)/{file.relative_to(fc)}""",
        timeout_s=BUILD_TIMEOUT_S,
    )
    assert json.loads((fc / "rootfs/_/debian/bookworm-slim/metadata.json").read_text())["Type"] == "baseos"
    assert (fc / "rootfs/_/debian/bookworm-slim/rootfs").stat().st_size > 0

    repository = make_repository(tmp_path / "git" / "docker-consul")
    (tmp_path / "git" / "docker-consul.git").symlink_to(repository.folder / ".git")
    repository.commit({"0.X/Dockerfile": DOCKERFILE, "0.X/consul": CONSUL})
    with serve_web() as web:
        web.pages["/*"] = git_backend(tmp_path / "git")
        reader.type(
            f"""firebuild rootfs \\
    --profile=standard \\
    --dockerfile=git+{web.url}/docker-consul.git:/0.X/Dockerfile#main \\
    --cni-network-name=machine-builds \\
    --ssh-user=alpine \\
    --vmlinux-id=vmlinux-v5.8 \\
    --tag=combust-labs/consul:1.9.4""",
            timeout_s=BUILD_TIMEOUT_S,
        )
    built = json.loads((fc / "rootfs/combust-labs/consul/1.9.4/metadata.json").read_text())
    assert (built["Type"], built["EntrypointInfo"]["Entrypoint"], built["Parent"]["Type"]) == (
        "rootfs",
        ["consul"],
        "baseos",
    )
    run_and_query(reader)
    what_was_coming_next(reader)


def run_and_query(reader: Reader) -> None:
    """The article's second half: the application is started, asked, looked at and ended."""
    reader.type("""firebuild run \\
    --profile=standard \\
    --from=combust-labs/consul:1.9.4 \\
    --cni-network-name=machines \\
    --vmlinux-id=vmlinux-v5.8 --cpu=1 --mem=256 --env=NODE=one --daemonize""")
    machine = reader.type("firebuild ls \\\n    --profile=standard \\\n    --log-as-json 2>&1 | jq '.id' -r").strip()
    assert len(machine) == 20 and machine.isalnum()
    address = reader.type(f"""firebuild inspect \\
    --profile=standard \\
    --vmm-id={machine} | jq '.NetworkInterfaces[0].StaticConfiguration.IPConfiguration.IP' -r""").strip()
    answer = reader.type(
        f"curl --retry 20 --retry-connrefused --retry-delay 1 -sf http://{address}:8500/v1/status/leader"
    )
    assert answer == '"127.0.0.1:8300"'
    assert reader.type(f"firebuild logs --profile=standard {machine}") == "Consul 1.9.4 agent -dev -client 0.0.0.0\n"

    def inside(command: str) -> str:
        return reader.type(f"firebuild exec --profile=standard --vmm-id={machine} -- {command}")

    hostname = inside("cat /etc/hostname").strip()
    assert f"{address} {hostname}" in " ".join(inside("cat /etc/hosts").split())
    assert "NODE" in inside("cat /etc/profile.d/run-env.sh")
    assert "nameserver" in inside("cat /etc/resolv.conf") and "hosts:" in inside("cat /etc/nsswitch.conf")
    assert "combust-labs/consul:1.9.4" in reader.type("firebuild ls --profile=standard")
    reader.type(f"firebuild kill --profile=standard --vmm-id={machine}")
    assert reader.type("firebuild ls -q --profile=standard") == ""


def what_was_coming_next(reader: Reader) -> None:
    """Unclean shutdowns and profiles; of what the article promises: disks, events, networks."""
    reader.type("firebuild network create --profile=standard seed0 && firebuild network rm --profile=standard seed0")
    reader.type(
        "firebuild run --profile=standard --name=second -d -u root -v data:/consul/data combust-labs/consul:1.9.4"
    )
    # A reboot in the guest, of the hardest kind, ends the machine.
    reader.type("firebuild exec --profile=standard second -- sh -c 'echo b >/proc/sysrq-trigger' || true")
    reader.type("firebuild wait --profile=standard second")
    assert "second" in reader.type("firebuild purge --profile=standard")
    assert reader.type("firebuild ls -a -q --profile=standard") == ""
    assert not list((reader.home / "jail").glob("*/*second*"))
    assert "second" in reader.type("firebuild events --profile=standard --since=1h --until=0s")
    assert "standard" in reader.type("firebuild profile-ls")
    assert str(reader.home) in reader.type("firebuild profile-inspect --profile=standard")
