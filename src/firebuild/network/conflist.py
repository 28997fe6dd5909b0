"""CNI network configurations: found in folders, read, checked (CNI specification 1.1.0, section 1)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from firebuild.errors import NetworkError, NotFoundError
from firebuild.layout import find_bundled

TAP_PLUGIN = "tc-redirect-tap"
CONFIG_SIZE_MAX = 1 << 20
# Of a file with a single plugin's configuration.
_NOT_THE_PLUGINS = ("name", "cniVersion", "firebuild", "disableGC")
_VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
# The specification's own pattern for names; it also makes a name safe as a file name.
NAME_PATTERN = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_SUFFIXES = (".conflist", ".conf", ".json")


class NetworkSettings(msgspec.Struct, frozen=True):
    """Where plugins, configurations and records are.

    `bin_dirs`: plugin programs, the first match wins. `conf_dirs`: the user's configurations; the two that firebuild
    ships come after them, so that a user's network of the same name wins. `cache_dir`: records of attachments, and locks.
    `own_dir`: what `network create` made; read after the user's. `names_dir`: where resolvers are, all profiles' together; None: no names.
    """

    bin_dirs: tuple[Path, ...]
    conf_dirs: tuple[Path, ...]
    cache_dir: Path
    own_dir: Path | None = None
    names_dir: Path | None = None


class NetworkOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a configuration may say to firebuild, under its key `firebuild`. CNI leaves unknown keys alone.

    `internal`: no way out of the network. `isolated`: its machines cannot reach each other. `allow`: what its machines may
    reach beside (fence.parse_permit). `created_ns`: Unix time.
    """

    internal: bool = False
    isolated: bool = False
    allow: list[str] = []
    labels: dict[str, str] = {}
    created_ns: int = 0


class Network(msgspec.Struct, frozen=True):
    """A usable network configuration. `plugins`: the plugin objects as written, without a trailing `tc-redirect-tap`.

    `wants_tap` tells that such an entry was there (the tap is made in any case, by firebuild). `bundled`: firebuild's own.
    `disable_gc`: others attach to it too.
    """

    name: str
    cni_version: str
    path: Path
    plugins: list[dict[str, Any]]
    bundled: bool = False
    wants_tap: bool = False
    options: NetworkOptions = NetworkOptions()
    disable_gc: bool = False

    @property
    def collects(self) -> bool:
        """Whether its plugins know the command GC, and may be given it."""
        return self.cni_version == "1.1.0" and not self.disable_gc

    @property
    def plugin_types(self) -> list[str]:
        """The plugins' program names, in order."""
        return [str(plugin["type"]) for plugin in self.plugins]

    @property
    def bridge(self) -> str | None:
        """The host's bridge, where the network has one."""
        for plugin in self.plugins:
            if plugin["type"] == "bridge":
                return str(plugin.get("bridge") or "cni0")
        return None

    @property
    def subnets(self) -> list[str]:
        """The subnets that host-local hands addresses out from, as written."""
        found: list[str] = []
        for plugin in self.plugins:
            ipam = plugin.get("ipam")
            if isinstance(ipam, dict):
                ranges = [entry for group in ipam.get("ranges") or [] for entry in group]
                found += [str(entry["subnet"]) for entry in [ipam, *ranges] if "subnet" in entry]
        return found

    @property
    def host_is_gateway(self) -> bool:
        """Whether the host has an address on the network's bridge."""
        return any(
            plugin["type"] == "bridge" and (plugin.get("isGateway") is True or plugin.get("isDefaultGateway") is True)
            for plugin in self.plugins
        )

    def has_capability(self, capability: str) -> bool:
        """Whether some plugin declares a capability, `portMappings` for example."""
        return any((plugin.get("capabilities") or {}).get(capability) is True for plugin in self.plugins)

    def needs_iptables(self) -> bool:
        """Whether some plugin runs iptables (known ones; others find out by themselves)."""
        return any(plugin["type"] in ("portmap", "firewall") or plugin.get("ipMasq") is True for plugin in self.plugins)


def parse_network(text: str | bytes, path: Path, *, bundled: bool = False) -> Network:
    """A network from the text of a configuration list, or of a single plugin's configuration. Raises NetworkError."""
    import json

    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _invalid(path, f"it is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise _invalid(path, "it is not a JSON object")
    name = document.get("name")
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        raise _invalid(path, "`name` is missing, or not letters, digits, `_`, `.`, `-`")
    version = document.get("cniVersion")
    if version not in _VERSIONS:
        raise _invalid(path, f"`cniVersion` is {json.dumps(version)}; firebuild speaks {', '.join(_VERSIONS)}")
    if "plugins" in document:
        plugins = document["plugins"]
        if not isinstance(plugins, list):
            raise _invalid(path, "`plugins` is not a list")
    else:
        plugins = [{key: value for key, value in document.items() if key not in _NOT_THE_PLUGINS}]
    for number, plugin in enumerate(plugins):
        _check_plugin(path, number, plugin)
    wants_tap = bool(plugins) and plugins[-1]["type"] == TAP_PLUGIN
    if wants_tap:
        plugins = plugins[:-1]
    if not plugins:
        raise _invalid(path, "`plugins` is empty")
    if any(plugin["type"] == TAP_PLUGIN for plugin in plugins):
        raise _invalid(path, f"`{TAP_PLUGIN}` is not its last plugin")
    try:
        options = msgspec.convert(document.get("firebuild", {}), NetworkOptions)
    except msgspec.ValidationError as error:
        raise _invalid(path, f"`firebuild`: {error}") from None
    return Network(name, version, path, plugins, bundled, wants_tap, options, document.get("disableGC") is True)


def _check_plugin(path: Path, number: int, plugin: object) -> None:
    if not isinstance(plugin, dict):
        raise _invalid(path, f"plugin {number} is not a JSON object")
    kind = plugin.get("type")
    if not isinstance(kind, str) or not NAME_PATTERN.fullmatch(kind):
        raise _invalid(path, f"plugin {number} has no `type`, or one that is not a program's name")
    capabilities = plugin.get("capabilities", {})
    if not isinstance(capabilities, dict):
        raise _invalid(path, f"plugin {number} (`{kind}`): `capabilities` is not an object")
    ipam = plugin.get("ipam", {})
    if not isinstance(ipam, dict):
        raise _invalid(path, f"plugin {number} (`{kind}`): `ipam` is not an object")
    groups = ipam.get("ranges") or []
    if not isinstance(groups, list) or not all(
        isinstance(group, list) and all(isinstance(entry, dict) for entry in group) for group in groups
    ):
        raise _invalid(path, f"plugin {number} (`{kind}`): `ipam.ranges` is not a list of lists of objects")


def _invalid(path: Path, reason: str) -> NetworkError:
    return NetworkError(f"the network configuration `{path}` cannot be used: {reason}")


def find_network(settings: NetworkSettings, name: str) -> Network | None:
    """The network of that name, or None. Raises NetworkError if the file that must be it is malformed.

    A malformed file is passed over while another one is asked for. It is taken to be the one asked for if its `name` says
    so, or, where it has none that can be read, its file name (`machines.conflist`, `10-machines.conf`).
    """
    for path, bundled in _config_files(settings):
        try:
            network = parse_network(_read(path), path, bundled=bundled)
        except NetworkError:
            if name in _possible_names(path):
                raise
            continue
        if network.name == name:
            return network
    return None


def get_network(settings: NetworkSettings, name: str) -> Network:
    """As find_network; raises NotFoundError."""
    network = find_network(settings, name)
    if network is None:
        known = ", ".join(f"`{known.name}`" for known in list_networks(settings))
        folders = ", ".join(f"`{folder}`" for folder in settings.conf_dirs)
        raise NotFoundError(
            f"there is no network `{name}`",
            hint=f"known networks: {known}; configurations are read from {folders or 'no folder'}",
        )
    return network


def list_networks(settings: NetworkSettings) -> list[Network]:
    """All usable networks, each name once, by name. Malformed files are passed over."""
    found: dict[str, Network] = {}
    for path, bundled in _config_files(settings):
        try:
            network = parse_network(_read(path), path, bundled=bundled)
        except NetworkError:
            continue
        found.setdefault(network.name, network)
    return [found[name] for name in sorted(found)]


def _config_files(settings: NetworkSettings) -> Iterator[tuple[Path, bool]]:
    bundled = find_bundled("conflists")
    folders = [(folder, False) for folder in settings.conf_dirs]
    if settings.own_dir is not None:
        folders.append((settings.own_dir, False))
    if bundled is not None:
        folders.append((bundled, True))
    for folder, is_bundled in folders:
        try:
            files = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise NetworkError(f"the folder `{folder}` cannot be read: {error.strerror}") from error
        # As libcni: lists are preferred over single configurations.
        files.sort(key=lambda path: path.suffix != ".conflist")
        for path in files:
            yield path, is_bundled


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(CONFIG_SIZE_MAX + 1)
    except OSError as error:
        raise _invalid(path, f"it cannot be read: {error.strerror}") from error
    if len(data) > CONFIG_SIZE_MAX:
        raise _invalid(path, "it is larger than 1 MiB")
    return data


def _possible_names(path: Path) -> set[str]:
    import json

    try:
        document = json.loads(_read(path))
        if isinstance(document, dict) and isinstance(document.get("name"), str):
            return {document["name"]}
    except (ValueError, RecursionError, NetworkError):
        pass  # Only the file's name is left to tell.
    return {path.stem, re.sub(r"^[0-9]+-", "", path.stem)}
