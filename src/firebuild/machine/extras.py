"""What a user may ask of the VMM beside processors and memory: CPU templates, huge pages, a balloon; and who has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from firebuild.errors import UsageError
from firebuild.machine.spec import VmmExtras
from firebuild.vmm.models import Balloon, VmmSetup
from firebuild.vmm.versions import FEATURES, Version

# Firecracker's static templates for x86_64.
STATIC_TEMPLATES = ("C3", "T2", "T2S", "T2CL", "T2A")
HUGE_PAGES = {"none": "None", "transparent": "Transparent", "2m": "2M"}
# The API takes no longer body.
_TEMPLATE_MAX = 51200
_TEMPLATE_KEYS = frozenset(("kvm_capabilities", "cpuid_modifiers", "msr_modifiers"))


def parse_extras(*, cpu_template: str | None, huge_pages: str, balloon_bytes: int | None, memory_mib: int) -> VmmExtras:
    """The extras from options' texts. `cpu_template`: a name, or `@FILE` of a custom one. Raises UsageError."""
    if huge_pages.lower() not in HUGE_PAGES:
        raise UsageError(f"--huge-pages: `{huge_pages}` is not a kind of pages", hint=f"choose {', '.join(HUGE_PAGES)}")
    pages = HUGE_PAGES[huge_pages.lower()]
    if pages != "None" and memory_mib % 2:
        raise UsageError(f"--huge-pages {huge_pages}: {memory_mib} MiB of memory are no whole number of pages of 2 MiB")
    balloon_mib = None if balloon_bytes is None else balloon_bytes >> 20
    if balloon_mib is not None and balloon_mib >= memory_mib:
        raise UsageError(f"--balloon: the machine's {memory_mib} MiB of memory are not more than {balloon_mib} MiB")
    name, config = "", None
    if cpu_template and cpu_template.startswith("@"):
        config = _load_template(Path(cpu_template[1:]))
    elif cpu_template:
        if cpu_template not in STATIC_TEMPLATES:
            raise UsageError(
                f"--cpu-template: there is no template `{cpu_template}`",
                hint=f"choose {', '.join(STATIC_TEMPLATES)}, or @FILE for one of your own",
            )
        name = cpu_template
    return VmmExtras(name, config, pages, balloon_mib)


def _load_template(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(_TEMPLATE_MAX + 1)
    except OSError as error:
        raise UsageError(f"--cpu-template: `{path}` cannot be read: {error.strerror}") from error
    if len(data) > _TEMPLATE_MAX:
        raise UsageError(f"--cpu-template: `{path}` is longer than {_TEMPLATE_MAX} bytes, the most that the VMM takes")
    try:
        template = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise UsageError(f"--cpu-template: `{path}` is not JSON: {error}") from None
    if not isinstance(template, dict) or not _TEMPLATE_KEYS.issuperset(template):
        raise UsageError(
            f"--cpu-template: `{path}` is not a CPU template", hint=f"its keys are {', '.join(sorted(_TEMPLATE_KEYS))}"
        )
    return template


def check_extras(extras: VmmExtras, version: Version | None) -> None:
    """Refuse what the VMM does not have, before anything exists. `version`: Firecracker's; None: the emulator. Raises UsageError."""
    if version is None:
        if extras.cpu_template or extras.cpu_config is not None:
            _refuse("--cpu-template", "has no CPU templates")
        if extras.huge_pages == "2M":
            _refuse("--huge-pages 2m", "has no pages of 2 MiB")
        return
    if extras.huge_pages == "Transparent" and version < FEATURES["transparent-huge-pages"]:
        raise UsageError(
            f"--huge-pages transparent: Firecracker {version} does not have it",
            hint=f"Firecracker {FEATURES['transparent-huge-pages']} does, or choose 2m",
        )


def _refuse(option: str, lack: str) -> None:
    raise UsageError(
        f"{option}: this machine would run on the emulator, which {lack}",
        hint="on a host with hardware virtualization: firebuild firecracker install",
    )


def apply_extras(setup: VmmSetup, extras: VmmExtras, version: Version) -> VmmSetup:
    """The setup with what was asked for. `version`: of the API that it goes to."""
    machine = msgspec.structs.replace(
        setup.machine, cpu_template=extras.cpu_template or msgspec.UNSET, huge_pages=extras.huge_pages
    )
    balloon = None
    if extras.balloon_mib is not None:
        reports = version >= FEATURES["page-reporting"]
        balloon = Balloon(extras.balloon_mib, free_page_reporting=True if reports else msgspec.UNSET)
    return msgspec.structs.replace(setup, machine=machine, cpu_config=extras.cpu_config, balloon=balloon)
