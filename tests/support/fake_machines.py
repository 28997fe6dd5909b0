"""A firebuild of a test's own whose machines are scripted stand-ins: no guest is booted."""

from __future__ import annotations

import os
from pathlib import Path

from firebuild.config.settings import load_settings
from firebuild.engine.core import Engine
from firebuild.engine.disk_keys import root_disk_key
from firebuild.kernels.vmlinux import KernelFile
from firebuild.names import parse_reference
from firebuild.store.images import ImageConfig, RunConfig
from tests.support.cli import Cli, Result
from tests.support.fake_jailer import write_fake_jailer
from tests.support.fake_vmm import Script, write_fake_vmm

IMAGE = "test/app:1"
# The ids of this process's jails: tests that run at the same time have others.
FIRST_ID = 1_900_000_000 + os.getpid() % 200_000 * 1000
LAST_ID = FIRST_ID + 999


class Fake:
    """A firebuild whose VMM is the stand-in, with one image whose disk exists and a kernel that nobody boots."""

    def __init__(self, cli: Cli, folder: Path) -> None:
        self.cli = cli
        self.folder = folder
        with Engine(load_settings(cli.environment())[0]) as engine:
            config = ImageConfig(architecture="amd64", os="linux", config=RunConfig(cmd=["/bin/app"]))
            image = engine.images.commit_image(config, [], [parse_reference(IMAGE)])
            key, parameters = root_disk_key(engine, image.chain_id)
            with engine.disks.stage(engine.settings.root_disk_bytes) as staged:
                staged.publish(key, {"chain_id": image.chain_id, "parameters": parameters})
            kernel = KernelFile(
                content=b"not booted", format="elf", version="0", architecture="x86_64", config=None, pvh=True
            )
            engine.kernels.publish("fake", kernel, source="test")

    def environment(self, script: Script) -> dict[str, str]:
        binary = write_fake_vmm(self.folder / "fake-vmm", script)
        return {"FIREBUILD_BINARY_FIRECRACKER": str(binary)}

    def run(self, *arguments: str, script: Script | None = None, network: str = "none") -> Result:
        command = ("run", "--from", IMAGE, "--network", network, *arguments)
        return self.cli.run(*command, environment=self.environment(script or Script()))

    def state(self, name: str) -> str:
        status: str = self.cli.json("inspect", name)["State"]["Status"]
        return status


class Jails(Fake):
    """A firebuild whose VMM is the stand-in, in a jail."""

    faults: tuple[str, ...] = ()
    more: dict[str, str] = {}  # noqa: RUF012

    def environment(self, script: Script) -> dict[str, str]:
        vmm = write_fake_vmm(self.folder / "firecracker", script)
        jailer = write_fake_jailer(self.folder / "jailer", *self.faults)
        return {
            "FIREBUILD_BINARY_FIRECRACKER": str(vmm),
            "FIREBUILD_BINARY_JAILER": str(jailer),
            "FIREBUILD_JAILER_IDS": f"{FIRST_ID}-{LAST_ID}",
            **self.more,
        }

    def jailed(self, *arguments: str, network: str = "none", **script: object) -> Result:
        return self.run(*arguments, script=Script(seccomp=True, **script), network=network)  # type: ignore[arg-type]

    def claims(self) -> list[str]:
        """The ids that machines have."""
        ids = (path.name for path in Path("/run/firebuild-ids").glob("[0-9]*"))
        return [name for name in ids if FIRST_ID <= int(name) <= LAST_ID]

    def vmm_pid(self, name: str) -> int:
        number: int = self.cli.json("inspect", name)["Pid"]["Pid"]
        return number
