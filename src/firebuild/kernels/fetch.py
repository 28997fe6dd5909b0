"""Getting kernels: the distribution's own package by apt, unpacked and never installed; or a user's files."""

from __future__ import annotations

import os
import platform
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from firebuild.errors import KernelError, ProcessError
from firebuild.host.files import remove_tree
from firebuild.host.locks import hold_lock
from firebuild.host.process import run
from firebuild.kernels.check import Finding, check_kernel, require_usable
from firebuild.kernels.modules import REQUIRED, ModuleSet, ModuleTree, load_modules, unpack_modules
from firebuild.kernels.store import Kernel, KernelStore
from firebuild.kernels.vmlinux import parse_config, parse_kernel

Progress = Callable[[str], None]

DOWNLOAD_TIMEOUT_S = 1800.0
_PULL = ".pull-"
_KERNEL_MAX = 512 << 20
_DEBIAN_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,200}")
_IMAGE_PACKAGE = re.compile(r"linux-image-(?:unsigned-)?(?P<version>[0-9][a-z0-9+.~-]*)")
_DEPENDS = re.compile(r"^\s*\|?Depends: (\S+)$", re.MULTILINE)


class Distribution(msgspec.Struct, frozen=True):
    """What /etc/os-release says (os-release(5)): `id`, `like` and `version`."""

    id: str
    like: tuple[str, ...]
    version: str


def parse_os_release(text: str) -> Distribution:
    """Parse an os-release file; missing fields are empty."""
    fields = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith("#"):
            fields[key] = value.strip("\"'")
    return Distribution(fields.get("ID", ""), tuple(fields.get("ID_LIKE", "").split()), fields.get("VERSION_ID", ""))


def plan_packages(distribution: Distribution, architecture: str) -> list[str]:
    """The meta packages whose kernel suits a microVM, best first. Raises KernelError for a distribution without apt."""
    debian = _DEBIAN_ARCHITECTURES.get(architecture)
    if debian is None:
        raise KernelError(f"there is no kernel package for the architecture {architecture}")
    family = (distribution.id, *distribution.like)
    if "ubuntu" in family:
        # linux-image-kvm ended with 22.04; `virtual` is the generic kernel with the modules that guests need.
        return ["linux-image-virtual", "linux-image-generic"]
    if "debian" in family:
        return [f"linux-image-cloud-{debian}", f"linux-image-{debian}"]
    raise KernelError(
        f"`kernel pull` knows the packages of Debian and Ubuntu, not those of `{distribution.id or 'this system'}`",
        hint="bring a kernel with `firebuild kernel import --vmlinux FILE --modules DIR`",
    )


def pull_kernel(
    store: KernelStore,
    *,
    name: str | None = None,
    distribution: Distribution | None = None,
    architecture: str | None = None,
    progress: Progress | None = None,
) -> Kernel:
    """Fetch this distribution's kernel package, take kernel, configuration and modules out of it, and keep them.

    `name`: else `<distribution>-<version>`. Raises KernelError, BusyError during another pull, MissingProgramError,
    DeadlineError, DiskFullError.
    """
    say = progress or (lambda _: None)
    architecture = architecture or platform.machine()
    distribution = distribution or _load_distribution()
    with _open_pull_folder(store.root) as folder:
        package = _choose_package(plan_packages(distribution, architecture))
        match = _IMAGE_PACKAGE.fullmatch(package)
        if match is None:
            raise KernelError(f"the kernel package has the unexpected name `{package}`")
        version = match["version"]
        packages = [package]
        # Ubuntu keeps modules and configuration in a package of their own.
        modules_package = f"linux-modules-{version}"
        if _is_known(modules_package):
            packages.append(modules_package)
        root = folder / "root"
        for wanted in packages:
            say(f"downloading {wanted}")
            _unpack(_download(wanted, folder), root)
        say("reading the kernel and its modules")
        kernel_file = _only(root, (f"boot/vmlinuz-{version}", f"usr/lib/modules/{version}/vmlinuz"), package)
        modules = _find_folder(root, (f"lib/modules/{version}", f"usr/lib/modules/{version}"), package)
        config_file = _only(root, (f"boot/config-{version}", f"usr/lib/modules/{version}/config"), package)
        return import_kernel(
            store,
            name or f"{distribution.id}-{version}",
            kernel_file,
            modules_dir=modules,
            config_file=config_file,
            architecture=architecture,
            source=f"package {' '.join(packages)}",
        )


@contextmanager
def _open_pull_folder(root: Path) -> Iterator[Path]:
    """A private folder for one pull at a time; what a killed pull left is removed first. Raises BusyError."""
    with hold_lock(root / ".pull.lock", "`kernel pull`"):
        for left in root.glob(f"{_PULL}*"):
            remove_tree(left)
        folder = root / (_PULL + secrets.token_hex(8))
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            remove_tree(folder)


def import_kernel(
    store: KernelStore,
    name: str,
    vmlinux: Path,
    *,
    modules_dir: Path | None = None,
    config_file: Path | None = None,
    architecture: str | None = None,
    source: str | None = None,
    force: bool = False,
) -> Kernel:
    """Take in a kernel file (ELF, bzImage or arm64 Image), with the folder of its modules if it is modular.

    `modules_dir`: `/lib/modules/<version>` or a folder that holds one such folder. Without `config_file` the embedded
    configuration is used. Warnings are kept with the kernel; errors raise, unless `force`. Raises KernelError, ConflictError.
    """
    kernel = parse_kernel(_read(vmlinux), f"`{vmlinux}`")
    config_text = _read(config_file).decode("utf-8", "replace") if config_file else None
    config = parse_config(config_text) if config_text is not None else None
    loaded = ModuleSet([], [])
    if modules_dir is not None:
        tree = ModuleTree(_find_version_folder(modules_dir, kernel.version))
        if not len(tree):
            raise KernelError(f"`{modules_dir}` holds no kernel modules", hint="give the folder /lib/modules/VERSION")
        loaded = load_modules(tree)
        _check_versions(tree, loaded, kernel.version)
    names = [module.name for module in loaded.modules]
    findings = check_kernel(kernel, config=config, modules=names, architecture=architecture or platform.machine())
    if config is None and kernel.config is None and modules_dir is not None:
        findings += [
            Finding("error" if missing in REQUIRED else "warning", missing, f"the module `{missing}` is missing")
            for missing in loaded.missing
        ]
    if not force:
        require_usable(findings, f"`{vmlinux}`")
    if config_text is None and kernel.config is not None:
        config_text = "".join(f"{key}={value}\n" for key, value in kernel.config.items())
    return store.publish(
        name,
        kernel,
        source=source or f"file {vmlinux.name}",
        modules=loaded.modules,
        config=config_text,
        warnings=[finding.message for finding in findings],
    )


def adopt_kernel(
    store: KernelStore, name: str, vmlinux: bytes, *, modules: Path | None, config_text: str | None, source: str
) -> Kernel:
    """Take in a kernel that another firebuild kept. `modules`: its packed modules. Where the name is taken by another kernel,
    the beginning of the digest is added to it. Raises KernelError for what cannot be booted here."""
    import hashlib

    kernel = parse_kernel(vmlinux, f"the kernel of {source}")
    loaded = unpack_modules(modules) if modules is not None else []
    findings = check_kernel(
        kernel,
        config=parse_config(config_text) if config_text is not None else None,
        modules=[module.name for module in loaded],
        architecture=platform.machine(),
    )
    require_usable(findings, f"the kernel of {source}")
    taken = store.find(name)
    digest = hashlib.sha256(kernel.content).hexdigest()
    if taken is not None and taken.digest != f"sha256:{digest}":
        name = f"{name[:100]}-{digest[:12]}"
    return store.publish(
        name, kernel, source=source, modules=loaded, config=config_text, warnings=[each.message for each in findings]
    )


def _load_distribution() -> Distribution:
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        with suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
            return parse_os_release(file.read())
    return Distribution("", (), "")


def _choose_package(candidates: Sequence[str]) -> str:
    """The versioned image package behind the first meta package that apt knows."""
    for meta in candidates:
        if not _is_known(meta):
            continue
        result = run(["apt-cache", "depends", "--important", meta])
        for package in _DEPENDS.findall(result.stdout.decode("utf-8", "replace")):
            if _IMAGE_PACKAGE.fullmatch(package):
                return str(package)
    raise KernelError(
        f"apt knows none of the packages {', '.join(candidates)}",
        hint="run `apt-get update`; the package sources must include the distribution's main section",
    )


def _is_known(package: str) -> bool:
    if not _PACKAGE.fullmatch(package):
        raise KernelError(f"`{package[:100]}` is not a package name")
    result = run(["apt-cache", "policy", package])
    text = result.stdout.decode("utf-8", "replace")
    return "Candidate:" in text and "Candidate: (none)" not in text


def _download(package: str, folder: Path) -> Path:
    """`apt-get download` into a private folder; as root itself, since apt's own user cannot write there."""
    target = folder / package
    target.mkdir()
    try:
        run(
            ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package],
            cwd=target,
            timeout_s=DOWNLOAD_TIMEOUT_S,
        )
    except ProcessError as error:
        raise KernelError(
            f"the package `{package}` cannot be downloaded",
            hint="run `apt-get update`, and check that the package mirror can be reached",
            details=error.details,
        ) from error
    files = sorted(target.glob("*.deb"))
    if len(files) != 1:
        raise KernelError(f"apt downloaded {len(files)} files for the package `{package}`, not one")
    return files[0]


def _unpack(package: Path, root: Path) -> None:
    """Unpack a package that apt has verified; it is the distribution's, as trusted as the host's own programs."""
    root.mkdir(exist_ok=True)
    try:
        run(["dpkg-deb", "-x", os.fspath(package), os.fspath(root)], timeout_s=600)
    except ProcessError as error:
        raise KernelError(f"the package `{package.name}` cannot be unpacked", details=error.details) from error
    package.unlink()


def _only(root: Path, candidates: Sequence[str], package: str) -> Path:
    for candidate in candidates:
        if (root / candidate).is_file():
            return root / candidate
    raise KernelError(f"the package `{package}` has none of the files {', '.join(candidates)}")


def _find_folder(root: Path, candidates: Sequence[str], package: str) -> Path:
    for candidate in candidates:
        if (root / candidate).is_dir():
            return root / candidate
    raise KernelError(f"the package `{package}` has none of the folders {', '.join(candidates)}")


def _find_version_folder(folder: Path, version: str) -> Path:
    """The folder that holds `kernel/` or modules: itself, or the version's folder in it."""
    if not folder.is_dir():
        raise KernelError(f"the modules folder `{folder}` does not exist")
    for candidate in (folder / version, folder / "lib/modules" / version):
        if version and candidate.is_dir():
            return candidate
    return folder


def _check_versions(tree: ModuleTree, loaded: ModuleSet, version: str) -> None:
    """A module of another kernel would be refused by the guest: say so now. `vermagic` begins with the release."""
    for module in loaded.modules:
        magic = (tree.info(module.name).get("vermagic") or [""])[0].split(" ")[0]
        if version and magic and magic != version:
            raise KernelError(
                f"the module `{module.name}` is for the kernel {magic}, and the kernel is {version}",
                hint="give the modules that were built with this kernel",
            )


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise KernelError(f"`{path}` is not a file" if path.exists() else f"`{path}` does not exist")
        if path.stat().st_size > _KERNEL_MAX:
            raise KernelError(f"`{path}` has {path.stat().st_size} bytes: it is not a kernel")
        return path.read_bytes()
    except OSError as error:
        raise KernelError(f"`{path}` cannot be read: {error.strerror}") from error
