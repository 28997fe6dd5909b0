"""What is on disk of each attachment: written before anything is done for it, removed when nothing of it is left."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from firebuild.errors import NetworkError
from firebuild.host.files import map_os_error, sync_folder, write_atomic
from firebuild.names import MachineId, PortMapping

if TYPE_CHECKING:
    from firebuild.network.conflist import NetworkSettings

RECORD_VERSION = 1


class Attachment(msgspec.Struct, frozen=True):
    """A machine's place in a network.

    `netns`: the namespace's name, `netns_path`: where it is mounted; in it are `interface` (the CNI plugins' own) and `tap` (the
    VMM's). The guest takes `mac`, `addresses` (CIDR form, IPv4 first), `gateway`, `gateway6`, `mtu` (bytes) and the names.
    `host_interface`: the veth's end on the host, empty if there is none. `warnings`: sentences for the user. `number`: 0 for
    the machine's first network (eth0, tap0), and so on. `resolver`: the address of the network's own name server, if there is one.
    """

    machine_id: MachineId
    network: str
    netns: str
    netns_path: str
    interface: str
    tap: str
    mac: str
    addresses: list[str]
    gateway: str | None
    gateway6: str | None
    mtu: int
    nameservers: list[str]
    search: list[str]
    options: list[str]
    host_interface: str
    ports: list[PortMapping]
    cni_version: str
    warnings: list[str] = []
    number: int = 0
    resolver: str | None = None


class Record(msgspec.Struct, frozen=True):
    """One attachment, wanted or whole: `attachment` and `result` (the last plugin's) are there once it is whole.

    `plugins` is the configuration as it was used for ADD: DEL gets the same, whatever the user's files say by then.
    """

    machine_id: MachineId
    network: str
    cni_version: str
    plugins: list[dict[str, Any]]
    netns: str
    ports: list[PortMapping]
    ips: list[str]
    arguments: str
    result: dict[str, Any] | None = None
    attachment: Attachment | None = None
    number: int = 0
    version: int = RECORD_VERSION

    @property
    def key(self) -> str:
        """What its files are called by."""
        return record_key(self.machine_id, self.number)

    @property
    def interface(self) -> str:
        """The interface's name in the namespace, and the guest's."""
        return f"eth{self.number}"

    @property
    def tap(self) -> str:
        """The tap's name in the namespace."""
        return f"tap{self.number}"


class Progress(msgspec.Struct, frozen=True):
    """There while plugins run; `result` is that of the last one that ended. Not durable: a reboot clears what it is for."""

    result: dict[str, Any] | None = None


def record_key(machine_id: str, number: int) -> str:
    """What the files of a machine's attachment are called by: the id, for a further network with its number."""
    return f"{machine_id}.{number}" if number else machine_id


def _folder(settings: NetworkSettings) -> Path:
    return settings.cache_dir / "attachments"


def _record_path(settings: NetworkSettings, key: str) -> Path:
    return _folder(settings) / f"{key}.json"


def _progress_path(settings: NetworkSettings, key: str) -> Path:
    return _folder(settings) / f"{key}.progress"


def lock_path(settings: NetworkSettings, network: str) -> Path:
    """The lock of one network: its plugins run one chain at a time."""
    return settings.cache_dir / "locks" / network / "lock"


def ports_lock_path(settings: NetworkSettings) -> Path:
    """The lock under which published ports are compared and taken."""
    return settings.cache_dir / "locks" / "_ports" / "lock"  # no network's name starts with `_`


def networks_lock_path(settings: NetworkSettings) -> Path:
    """The lock under which networks are made."""
    return settings.cache_dir / "locks" / "_networks" / "lock"


def ensure_folders(settings: NetworkSettings, network: str) -> None:
    """Make the folders for records and for the locks that a network needs. Raises HostError."""
    locks = (lock_path(settings, network), ports_lock_path(settings), networks_lock_path(settings))
    for folder in (_folder(settings), *(lock.parent for lock in locks)):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise map_os_error(error, f"making the folder `{folder}`") from error


def save_record(settings: NetworkSettings, record: Record) -> None:
    """Write a record, durably. Raises HostError, DiskFullError."""
    write_atomic(_record_path(settings, record.key), msgspec.json.encode(record))


def find_record(settings: NetworkSettings, key: str) -> Record | None:
    """The record of that key, or None. Raises NetworkError if it cannot be understood."""
    path = _record_path(settings, key)
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise NetworkError(f"the attachment record `{path}` cannot be read: {error}") from error
    if record.version != RECORD_VERSION:
        raise NetworkError(
            f"the attachment record `{path}` has version {record.version}; this firebuild knows version {RECORD_VERSION}",
            hint="use the version of firebuild that wrote it",
        )
    return record


def delete_record(settings: NetworkSettings, key: str) -> None:
    """Forget an attachment, durably. Raises HostError."""
    path = _record_path(settings, key)
    try:
        _progress_path(settings, key).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise map_os_error(error, f"removing `{path}`") from error


def list_records(settings: NetworkSettings, machine_id: str | None = None) -> list[str]:
    """The keys of all records, or of a machine's, sorted: a machine's in the order in which it was attached."""
    try:
        keys = [path.stem for path in _folder(settings).iterdir() if path.suffix == ".json" and path.name[0] != "."]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise map_os_error(error, f"reading the folder `{_folder(settings)}`") from error
    if machine_id is not None:
        keys = [key for key in keys if key.partition(".")[0] == machine_id]
    return sorted(keys, key=_order)


def list_halves(settings: NetworkSettings) -> list[str]:
    """The keys of files that were being written when their command was killed, or are being written now."""
    return sorted({key for path in _halves(settings, "*") if (key := _key_of_half(path))})


def delete_halves(settings: NetworkSettings, machine_id: str) -> None:
    """Remove what killed commands left half-written for a machine, at which nobody is at work. Raises HostError."""
    for path in _halves(settings, f"*{machine_id}*"):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise map_os_error(error, f"removing `{path}`") from error


def _halves(settings: NetworkSettings, pattern: str) -> list[Path]:
    return list(_folder(settings).glob(f"{pattern}.tmp"))


def _key_of_half(path: Path) -> str:
    # `.KEY.json.RANDOM.tmp` of open_atomic, or `KEY.progress.tmp`.
    return re.split(r"\.json\.|\.progress\.", path.name.removeprefix("."))[0]


def _order(key: str) -> tuple[str, int]:
    machine_id, _, number = key.partition(".")
    return machine_id, int(number) if number.isdecimal() else 0


def find_records(settings: NetworkSettings, machine_id: str) -> list[Record]:
    """A machine's records, in the order in which it was attached. Raises NetworkError if one cannot be understood."""
    found = [find_record(settings, key) for key in list_records(settings, machine_id)]
    return [record for record in found if record is not None]


def list_others(settings: NetworkSettings, own: Record) -> list[Attachment]:
    """The attachments of other machines in a record's network. Raises NetworkError if a record cannot be understood."""
    found = [find_record(settings, key) for key in list_records(settings)]
    return [
        each.attachment
        for each in found
        if each is not None and each.attachment is not None and each.network == own.network and each.key != own.key
    ]


def save_progress(settings: NetworkSettings, key: str, progress: Progress) -> None:
    """Note that plugins run, and how far they got. Raises HostError, DiskFullError."""
    path = _progress_path(settings, key)
    temporary = path.with_suffix(".progress.tmp")
    try:
        temporary.write_bytes(msgspec.json.encode(progress))
        os.rename(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise map_os_error(error, f"writing `{path}`") from error


def find_progress(settings: NetworkSettings, key: str) -> Progress | None:
    """The progress note, or None. One that a power cut spoilt tells only that plugins ran."""
    try:
        data = _progress_path(settings, key).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise map_os_error(error, f"reading the progress of `{key}`") from error
    try:
        return msgspec.json.decode(data, type=Progress)
    except msgspec.MsgspecError:
        return Progress()


def delete_progress(settings: NetworkSettings, key: str) -> None:
    """Note that no plugin runs any more. Raises HostError."""
    try:
        _progress_path(settings, key).unlink(missing_ok=True)
    except OSError as error:
        raise map_os_error(error, f"removing the progress of `{key}`") from error
