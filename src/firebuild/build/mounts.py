"""RUN --mount in a plan: the mounts as the file has them become what a step needs, and what they add to its key."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Container, Sequence

import msgspec

from firebuild.build.digest import compute_digest
from firebuild.build.imageconfig import join_path
from firebuild.build.steps import (
    BindMount,
    CacheMount,
    ContextSource,
    ImageSource,
    Origin,
    RunAction,
    RunMount,
    SecretMount,
    SshMount,
    StageSource,
    TmpfsMount,
)
from firebuild.dockerfile import nodes
from firebuild.dockerfile.errors import shown
from firebuild.dockerfile.mounts import Mount
from firebuild.dockerfile.stages import SCRATCH
from firebuild.errors import DockerfileError

MAX_MOUNTS = 64
_CACHE_KEY = "firebuild-cache-mount-1"
_SECRETS = "/run/secrets"
_AGENTS = "/run/buildkit/ssh_agent"
# The sharing mode is how a cache is used, not which one it is, and does not change what a step makes of it.
_NOT_IN_KEY = ("key", "sharing", "origin")


class MountPlanner:
    """Plans the mounts of one stage's RUNs. `name`: of the Dockerfile across builds: a stage is known by it."""

    def __init__(self, name: str, find_origin: Callable[[str], Origin]) -> None:
        self._name = name
        self._find_origin = find_origin

    def plan(self, run: nodes.Run, workdir: str) -> tuple[RunMount, ...]:
        """The mounts of an expanded RUN, relative targets below `workdir`. Raises DockerfileError."""
        if len(run.resolved_mounts) > MAX_MOUNTS:
            raise DockerfileError(f"a RUN with {len(run.resolved_mounts)} mounts; it has {MAX_MOUNTS} at most")
        mounts: list[RunMount] = []
        agents = 0
        for flag, mount in zip(run.mounts, run.resolved_mounts, strict=True):
            origin = self._find_origin(flag.source) if flag.source and flag.source != SCRATCH else None
            mounts.append(self._plan_one(mount, flag.source or "", origin, workdir, agents))
            agents += mount.type == "ssh"
        return tuple(mounts)

    def _plan_one(self, mount: Mount, written: str, origin: Origin | None, workdir: str, agents: int) -> RunMount:
        if mount.type == "secret":
            return _plan_secret(mount)
        if mount.type == "ssh":
            return _plan_ssh(mount, agents)
        target = join_path(workdir, mount.target)
        if target == "/":
            raise DockerfileError(f"the mount target {shown(mount.target or '.')} is the root of the file system")
        source = posixpath.normpath("/" + mount.source)
        if mount.type == "tmpfs":
            return TmpfsMount(target, mount.size_bytes, mount.read_only)
        if mount.type == "cache":
            return self._plan_cache(mount, target, origin, "/" + source.lstrip("/"))
        empty = written == SCRATCH
        return BindMount(target, origin, "/" + source.lstrip("/"), mount.read_only, empty)

    def _plan_cache(self, mount: Mount, target: str, origin: Origin | None, source: str) -> CacheMount:
        cache_id = mount.id or posixpath.normpath(mount.target)
        attributes = (mount.mode, mount.uid, mount.gid)
        if source == "/" and attributes != (None, None, None):
            # Who says what the folder is like wants a folder of its own, not what it could begin with.
            origin = None
        mode = 0o755 if mount.mode is None else mount.mode
        uid, gid = mount.uid or 0, mount.gid or 0
        began = ""
        if isinstance(origin, StageSource):
            began = f"stage {self._name}#{origin.label}"
        elif isinstance(origin, ImageSource):
            began = f"image {origin.image.chain_id}"
        elif isinstance(origin, ContextSource):
            began = f"context {self._name}#{origin.name}"
        fields = {"id": cache_id, "from": began, "source": source, "owner": f"{uid}:{gid}", "mode": f"{mode:o}"}
        return CacheMount(
            target=target,
            id=cache_id,
            key=compute_digest(_CACHE_KEY, fields),
            sharing=mount.sharing or "shared",
            read_only=mount.read_only,
            mode=mode,
            uid=uid,
            gid=gid,
            origin=origin,
            source=source,
        )


def _plan_secret(mount: Mount) -> SecretMount:
    secret_id = mount.source or mount.id or posixpath.basename(mount.target)
    if not secret_id:
        raise DockerfileError("a secret mount needs an `id` or a `target`")
    target: str | None = mount.target or None
    if target is None and mount.env is None:
        target = f"{_SECRETS}/{posixpath.basename(secret_id)}"
    if mount.env is not None and (not mount.env or "=" in mount.env or "\0" in mount.env):
        raise DockerfileError(f"{shown(mount.env)} is no name of a variable for a secret")
    return SecretMount(
        id=secret_id,
        target=None if target is None else _plain_target(target),
        env=mount.env,
        required=mount.required,
        mode=0o400 if mount.mode is None else mount.mode & 0o777,
        uid=mount.uid or 0,
        gid=mount.gid or 0,
    )


def _plan_ssh(mount: Mount, number: int) -> SshMount:
    if mount.source:
        raise DockerfileError("an ssh mount takes no `source`")
    return SshMount(
        id=mount.id or "default",
        target=_plain_target(mount.target or f"{_AGENTS}.{number}"),
        required=mount.required,
        mode=0o600 if mount.mode is None else mount.mode & 0o777,
        uid=mount.uid or 0,
        gid=mount.gid or 0,
    )


def _plain_target(target: str) -> str:
    path = join_path("/", target)
    if path == "/":
        raise DockerfileError(f"the mount target {shown(target)} is the root of the file system")
    return path


def agent_variable(mounts: Sequence[RunMount], environment: Container[str]) -> tuple[str, ...]:
    """SSH_AUTH_SOCK for the first ssh mount, unless the stage has its own."""
    if "SSH_AUTH_SOCK" in environment:
        return ()
    return tuple(f"SSH_AUTH_SOCK={mount.target}" for mount in mounts if isinstance(mount, SshMount))[:1]


def list_origins(action: RunAction) -> list[tuple[int, Origin | None, str]]:
    """What the mounts of a step read: (number of the mount, its origin, the path in it). Not those that begin empty."""
    found: list[tuple[int, Origin | None, str]] = []
    for number, mount in enumerate(action.mounts):
        match mount:
            case BindMount(empty=False) | CacheMount(origin=StageSource() | ImageSource() | ContextSource()):
                found.append((number, mount.origin, mount.source))
    return found


def describe_mounts(action: RunAction) -> list[str]:
    """The definitions of a step's mounts, for its key: all that decides its result, but not the contents."""
    described: list[str] = []
    for mount in action.mounts:
        fields = msgspec.to_builtins(mount)
        described.append(
            msgspec.json.encode(
                {name: value for name, value in fields.items() if name not in _NOT_IN_KEY}, order="sorted"
            ).decode()
        )
    return described
