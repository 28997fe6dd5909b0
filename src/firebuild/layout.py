"""Every path on the host that firebuild keeps state under, and nothing else.

<state>/                        /var/lib/firebuild; of another profile /var/lib/firebuild/profiles/<name>; or as it is set
├── firebuild.db                facts: machines, leases, events (SQLite, WAL)
├── view-stamp                  what rootfs/ was made from when it was looked at last
├── reserve                     2 MiB that `gc` gives up to work on a full disk
├── locks/                      one lock file per thing that only one process may change
├── store/                      an OCI image layout: oci-layout, index.json, blobs/sha256/
│   └── ingest/                 blobs that are not complete yet
├── disks/<key>/                derived ext4 disks: disk.ext4, disk.json
├── kernels/<name>/             vmlinux, modules.tar, kernel.json
├── firecracker/<version>/      an installed Firecracker: firecracker, jailer
├── initramfs/                  derived initramfs files, by key
├── cache/                      what can be found out or fetched again: layer-sizes.json, http/ (files that ADD fetched),
│                               files/ (digests of the files of build contexts)
├── caches/<key>/               disks of cache mounts: disk.ext4, cache.json
├── volumes/<name>/             named volumes: disk.ext4, volume.json
├── snapshots/<name>/           saved machines: state, memory, their own disks, snapshot.json
├── scratch/                    what running builds fetch: a folder and its lock for each
├── rootfs/<org>/<name>/<version>/  the seed's view: rootfs, metadata.json
├── cni/                        cached CNI results
└── machines/<id>/              a machine's disks, logs, records
<run>/                          /run/firebuild; of another state folder /run/firebuild/s/<hash>; or as it is set
├── m/<id>/                     a machine's sockets (short: a Unix socket's path has 107 bytes)
└── n/                          network namespaces are named fb-<id> in /run/netns
"""

from __future__ import annotations

import os
from pathlib import Path

from firebuild.errors import HostError, PathTooLongError
from firebuild.names import MachineId

SOCKET_PATH_MAX = 107
DEFAULT_STATE = "/var/lib/firebuild"
DEFAULT_RUN = "/run/firebuild"
DEFAULT_PROFILE = "default"
DEFAULT_PROFILE_FOLDER = "/etc/firebuild/profiles"


def default_state_folder(profile: str) -> str:
    """The state folder of a profile that names none: each has its own."""
    return DEFAULT_STATE if profile == DEFAULT_PROFILE else f"{DEFAULT_STATE}/profiles/{profile}"


def default_run_folder(state: str) -> str:
    """The run folder that belongs to a state folder: no two share one, and its path is short whatever the state's is."""
    import hashlib

    if state == DEFAULT_STATE:
        return DEFAULT_RUN
    return f"{DEFAULT_RUN}/s/{hashlib.sha256(os.fsencode(state)).hexdigest()[:10]}"


class MachineLayout:
    """The paths of one machine: `state` survives until `rm`, `run` only while it runs."""

    def __init__(self, state: Path, run: Path, lock: Path) -> None:
        self.state = state
        self.run = run
        self.lock = lock
        self.upper_disk = state / "upper.ext4"
        self.work_disk = state / "work.ext4"
        self.result_disk = state / "result.ext4"
        self.root_copy = state / "root.ext4"
        self.spec = state / "spec.json"
        self.boot_document = state / "boot.json"
        self.supervisor_config = state / "supervisor.json"
        self.supervisor_log = state / "supervisor.log"
        self.console_log = state / "console.log"
        self.output_log = state / "output.log"
        self.vmm_log = state / "vmm.log"
        self.exit_record = state / "exit.json"
        self.network = state / "network.json"
        self.known_hosts = state / "known_hosts"
        self.vmm_pid_file = run / "vmm.pid"
        self.api_socket = run / "api.sock"
        self.vsock = run / "v.sock"
        self.push_socket = run / "v.sock_1025"
        self.control_socket = run / "c.sock"
        # What the jailer makes its own folders in; the machine's sockets are links into it then.
        self.jails = run / "j"

    def folder_disk(self, number: int) -> Path:
        """The disk of the machine's mount of that number, which holds a copy of a folder of the host."""
        return self.state / f"folder{number}.ext4"

    def drive_link(self, drive_id: str) -> Path:
        """The link by which the VMM, whose folder is `run`, names a drive: a saved machine's state holds that name, and a
        clone finds its own disk behind it."""
        return self.run / f"{drive_id}.drive"

    def folder_manifest(self, number: int) -> Path:
        """What that folder held when it and its disk were the same."""
        return self.state / f"folder{number}.json"

    def private_disk(self, drive_id: str) -> Path:
        """A machine's own copy of a disk that its user may not read, while it runs."""
        return self.state / f"private-{drive_id}.ext4"

    def check_lengths(self) -> None:
        """Raises PathTooLongError, naming the path, before anything exists."""
        for path in (self.api_socket, self.vsock, self.push_socket, self.control_socket):
            if len(os.fsencode(path)) > SOCKET_PATH_MAX:
                raise PathTooLongError(
                    f"the socket path `{path}` has {len(os.fsencode(path))} bytes; the kernel takes {SOCKET_PATH_MAX}",
                    hint="choose a shorter folder with --chroot-base or FIREBUILD_RUN",
                )


# Bridges are the host's, not a profile's, and so are the resolvers on them.
NAMES_FOLDER = Path("/run/firebuild-names")
# The users that jailed VMMs run as are the host's too: no two machines of any profile have the same.
IDS_FOLDER = Path("/run/firebuild-ids")


class Layout:
    """All host paths of one profile. Creating the object touches nothing; `ensure` makes the folders."""

    def __init__(
        self, state: Path, run: Path, *, rootfs_root: Path | None = None, kernel_root: Path | None = None
    ) -> None:
        self.state = state
        self.run = run
        self.database = state / "firebuild.db"
        self.locks = state / "locks"
        self.reserve = state / "reserve"
        self.store_lock = self.locks / "store"
        self.view_lock = self.locks / "view"
        self.view_stamp = self.state / "view-stamp"
        self.machine_locks = self.locks / "machines"
        self.store = state / "store"
        self.disks = state / "disks"
        self.kernels = kernel_root or state / "kernels"
        self.firecracker = state / "firecracker"
        self.firecracker_lock = self.locks / "firecracker"
        self.initramfs = state / "initramfs"
        self.cache = state / "cache"
        self.layer_sizes = self.cache / "layer-sizes.json"
        self.http_cache = self.cache / "http"
        self.file_digests = self.cache / "files"
        self.caches = state / "caches"
        self.volumes = state / "volumes"
        self.volume_lock = self.locks / "volumes"
        self.snapshots = state / "snapshots"
        self.snapshot_lock = self.locks / "snapshots"
        self.warm_lock = self.locks / "warm"
        self.scratch = state / "scratch"
        self.rootfs = rootfs_root or state / "rootfs"
        self.cni = state / "cni"
        self.networks = state / "networks"
        self.machines = state / "machines"
        self.machines_run = run / "m"

    def machine(self, machine_id: MachineId) -> MachineLayout:
        """The paths of one machine."""
        return MachineLayout(
            self.machines / machine_id, self.machines_run / machine_id, self.machine_locks / machine_id
        )

    def disk_lock(self, key: str) -> Path:
        """The lock of whoever makes the disk of that key; gone when nobody does."""
        return self.locks / f"disk-{key}"

    def firecracker_version(self, version: str) -> Path:
        """The folder of an installed version of Firecracker."""
        return self.firecracker / version

    def ensure(self) -> None:
        """Make the folders, private to root. Raises HostError where the file system refuses."""
        try:
            for folder in (self.state, self.run, self.locks, self.disks, self.kernels, self.initramfs, self.cache):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.cni, self.caches, self.machines, self.machines_run, self.machine_locks):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The unprivileged VMM must pass through to its own files; it cannot list them.
            for folder in (
                self.state,
                self.run,
                self.machines,
                self.machines_run,
                self.disks,
                self.caches,
                self.initramfs,
            ):
                folder.chmod(0o711)
            # This one may be the user's, who may let others list it.
            self.kernels.chmod(self.kernels.stat().st_mode & 0o777 | 0o111)
        except OSError as error:
            raise HostError(
                f"cannot make the folder `{error.filename}`: {error.strerror}", hint="run firebuild as root"
            ) from error


def find_bundled(name: str) -> Path | None:
    """A program or file that the package carries (`vminit`, `firebuild-supervisor`, conflists), or None."""
    path = Path(__file__).parent / "_bundled" / name
    return path if path.exists() else None


def get_bundled(name: str) -> Path:
    """As find_bundled; raises HostError naming the file and how to build it."""
    path = find_bundled(name)
    if path is None:
        raise HostError(
            f"the bundled file `{name}` is missing from this installation",
            hint="in a source checkout run `./dev guest`",
        )
    return path
