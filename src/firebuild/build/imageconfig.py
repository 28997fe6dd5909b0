"""What each instruction does to the image's configuration and history, as BuildKit does it."""

from __future__ import annotations

import copy
import posixpath
from collections.abc import Sequence

from firebuild.dockerfile import nodes
from firebuild.dockerfile.scope import Platform, Scope
from firebuild.errors import BuildError
from firebuild.store.images import Healthcheck, History, Image, ImageConfig

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_SHELL = ("/bin/sh", "-c")
HISTORY_COMMENT = "buildkit.dockerfile.v0"


class StageConfig:
    """The configuration of one stage while its instructions pass. `config.history` holds what this stage adds."""

    def __init__(self, config: ImageConfig, base_history: Sequence[History], platform: Platform) -> None:
        self.config = config
        self.base_history = tuple(base_history)
        self.platform = platform
        self.cmd_set = False
        same = (config.os, config.architecture) == (platform.os, platform.architecture)
        config.architecture, config.os = platform.architecture, platform.os
        if platform.variant or not same:
            config.variant = platform.variant or None
        run = config.config
        if not any(pair.startswith("PATH=") for pair in run.env):
            run.env = [*run.env, f"PATH={DEFAULT_PATH}"]
        if run.working_dir:
            run.working_dir = join_path("/", run.working_dir)

    @classmethod
    def from_scratch(cls, platform: Platform) -> StageConfig:
        """What `FROM scratch` starts with."""
        config = ImageConfig(architecture=platform.architecture, os=platform.os)
        config.config.working_dir = "/"
        return cls(config, (), platform)

    @classmethod
    def from_image(cls, image: Image, platform: Platform) -> StageConfig:
        """What a stage on an image starts with. The image's ONBUILD triggers are for the planner, not for the result."""
        config = copy.deepcopy(image.config)
        history = list(config.history)
        layers = sum(not entry.empty_layer for entry in history)
        for _ in range(len(image.layers) - layers):
            history.append(History(created=image.created, created_by="", comment="firebuild.import"))
        config.history = []
        config.config.on_build = []
        return cls(config, history, platform)

    def fork(self) -> StageConfig:
        """What a stage on this stage starts with. Its ONBUILD instructions are for the planner."""
        config = copy.deepcopy(self.config)
        config.config.on_build = []
        return StageConfig(config, self.base_history, self.platform)

    @property
    def shell(self) -> tuple[str, ...]:
        """What runs the shell forms."""
        return tuple(self.config.config.shell) or DEFAULT_SHELL

    def environment(self) -> dict[str, str]:
        """ENV by name."""
        return dict(pair.partition("=")[::2] for pair in self.config.config.env)

    def add_history(self, created_by: str, *, layer: bool) -> None:
        """Append an entry whose time is filled in when the layers are known."""
        entry = History(created_by=created_by, comment=HISTORY_COMMENT, empty_layer=not layer)
        self.config.history.append(entry)

    def apply(self, instruction: nodes.Instruction, scope: Scope) -> None:
        """Take in an expanded instruction that makes no layer; the scope has passed it already."""
        run = self.config.config
        match instruction:
            case nodes.Env():
                run.env = [f"{name}={value}" for name, value in scope.environment.items()]
                self.add_history("ENV " + " ".join(f"{p.name}={p.value}" for p in instruction.pairs), layer=False)
            case nodes.Label():
                run.labels = {**run.labels, **{pair.name: pair.value for pair in instruction.pairs}}
                self.add_history("LABEL " + " ".join(f"{p.name}={p.value}" for p in instruction.pairs), layer=False)
            case nodes.Arg():
                self.add_history("ARG " + " ".join(_arg_text(a, scope) for a in instruction.arguments), layer=False)
            case nodes.Maintainer():
                self.config.author = instruction.maintainer
                self.add_history(f"MAINTAINER {instruction.maintainer}", layer=False)
            case nodes.Onbuild():
                run.on_build = [*run.on_build, instruction.trigger]
            case nodes.User():
                run.user = instruction.user
                self.add_history(f"USER {instruction.user}", layer=False)
            case nodes.Volume():
                run.volumes = {**run.volumes, **{path: {} for path in instruction.paths}}
                self.add_history(f"VOLUME {_go_list(instruction.paths)}", layer=False)
            case nodes.StopSignal():
                run.stop_signal = instruction.signal
                self.add_history(f"STOPSIGNAL {instruction.signal}", layer=False)
            case nodes.Shell():
                run.shell = list(instruction.shell)
                self.add_history(f"SHELL {_go_list(instruction.shell)}", layer=False)
            case nodes.Expose():
                run.exposed_ports = {**run.exposed_ports, **{port: {} for port in instruction.ports}}
                self.add_history(f"EXPOSE {_go_list(instruction.ports)}", layer=False)
            case _:
                self._apply_program(instruction)

    def _apply_program(self, instruction: nodes.Instruction) -> None:
        run = self.config.config
        match instruction:
            case nodes.Cmd():
                run.cmd = list(instruction.command.argv(self.shell))
                self.cmd_set = True
                self.add_history(f"CMD {_go_quoted(run.cmd)}", layer=False)
            case nodes.Entrypoint():
                run.entrypoint = list(instruction.command.argv(self.shell))
                if not self.cmd_set:
                    run.cmd = []
                self.add_history(f"ENTRYPOINT {_go_quoted(run.entrypoint)}", layer=False)
            case nodes.Healthcheck():
                run.healthcheck = Healthcheck(
                    test=list(instruction.test),
                    interval=instruction.interval_ns,
                    timeout=instruction.timeout_ns,
                    start_period=instruction.start_period_ns,
                    start_interval=instruction.start_interval_ns,
                    retries=instruction.retries,
                )
                self.add_history(_healthcheck_text(run.healthcheck), layer=False)
            case _:
                raise BuildError(f"{instruction.name} is not supported yet")


def join_path(workdir: str, path: str) -> str:
    """`path` as seen from `workdir`: absolute and clean, without a trailing slash."""
    joined = posixpath.normpath(posixpath.join("/", workdir, path))
    return "/" + joined.lstrip("/")


def _arg_text(argument: nodes.ArgDeclaration, scope: Scope) -> str:
    value = scope.find_arg(argument.name)
    return argument.name if value is None else f"{argument.name}={value}"


def _go_list(items: Sequence[str]) -> str:
    """Go's `%v` of a list of strings."""
    return f"[{' '.join(items)}]"


def _go_quoted(items: Sequence[str]) -> str:
    """Go's `%q` of a list of strings."""
    import json

    return f"[{' '.join(json.dumps(item, ensure_ascii=False) for item in items)}]"


def _healthcheck_text(check: Healthcheck) -> str:
    """Go's `%+v` of the health check, as BuildKit writes it."""
    return (
        f"HEALTHCHECK {{Test:{_go_list(check.test)} Interval:{_go_duration(check.interval)} "
        f"Timeout:{_go_duration(check.timeout)} StartPeriod:{_go_duration(check.start_period)} "
        f"StartInterval:{_go_duration(check.start_interval)} Retries:{check.retries}}}"
    )


def _go_duration(nanoseconds: int) -> str:
    """Go's time.Duration.String()."""
    if nanoseconds == 0:
        return "0s"
    if nanoseconds < 10**9:
        for unit, size in (("ms", 10**6), ("µs", 10**3)):
            if nanoseconds >= size:
                return _decimal(nanoseconds, size) + unit
        return f"{nanoseconds}ns"
    minutes, rest = divmod(nanoseconds, 60 * 10**9)
    text = _decimal(rest, 10**9) + "s"
    if minutes:
        hours, minutes = divmod(minutes, 60)
        text = (f"{hours}h" if hours else "") + f"{minutes}m" + text
    return text


def _decimal(value: int, size: int) -> str:
    whole, rest = divmod(value, size)
    digits = len(str(size)) - 1
    fraction = f"{rest:0{digits}d}".rstrip("0")
    return f"{whole}.{fraction}" if fraction else str(whole)
