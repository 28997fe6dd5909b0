"""A Dockerfile to a plan: the needed stages, each with its steps expanded and checked, and its final configuration.

Pure but for `get_image`, which it asks for the configurations of base images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from firebuild.build.copy import InlineContent
from firebuild.build.graph import GetImage, GraphNode, plan_graph
from firebuild.build.imageconfig import DEFAULT_SHELL, StageConfig, join_path
from firebuild.build.mounts import MountPlanner, agent_variable
from firebuild.build.place import located
from firebuild.build.sources.url import redact_urls
from firebuild.build.steps import (
    Action,
    ContextSource,
    CopyAction,
    ImageSource,
    Origin,
    Plan,
    PlannedStage,
    PlannedStep,
    RunAction,
    StageSource,
    Surroundings,
    WorkdirAction,
)
from firebuild.build.support import check_supported, is_lone_heredoc, parse_remotes
from firebuild.dockerfile import nodes
from firebuild.dockerfile.expansion import expand_instruction
from firebuild.dockerfile.programs import plan_run
from firebuild.dockerfile.scope import (
    GlobalScope,
    Platform,
    Scope,
    list_unused_build_args,
    platform_args,
    proxy_environment,
)
from firebuild.dockerfile.stages import Dockerfile, Stage
from firebuild.errors import BuildError, DockerfileError, UsageError
from firebuild.events.text import neutralise
from firebuild.names import Reference
from firebuild.store.images import Image


class PlanOptions(msgspec.Struct, frozen=True):
    """What the user chose. `network`: default or none, for RUNs without a --network of their own; `name`: names the
    Dockerfile across builds, to explain misses; `contexts`: named contexts, None for scratch; `pre_commands`,
    `post_commands`: what the target runs before and after its own steps."""

    name: str
    platform: Platform
    build_args: Mapping[str, str] = {}
    labels: Mapping[str, str] = {}
    target: str | None = None
    network: str = "default"
    contexts: Mapping[str, ContextSource | Reference | None] = {}
    pre_commands: tuple[str, ...] = ()
    post_commands: tuple[str, ...] = ()


def plan_build(dockerfile: Dockerfile, options: PlanOptions, get_image: GetImage) -> Plan:
    """The plan of a build. Raises DockerfileError and BuildError with their place, NotFoundError for the target, and what
    `get_image` raises: nothing has happened then."""
    target = dockerfile.get_target(options.target)
    scope = _plan_global_scope(dockerfile, options, target)
    graph = plan_graph(dockerfile, target, scope, options.platform, get_image, options.contexts)
    stages: dict[int, PlannedStage] = {}
    planners: dict[int, _StagePlanner] = {}
    for node in graph:
        parent = planners[node.base.index] if isinstance(node.base, Stage) else None
        planner = _StagePlanner(dockerfile, options, scope, node, parent, is_target=node.stage is target)
        planners[node.stage.index] = planner
        stages[node.stage.index] = planner.plan()
    if options.labels:
        run = stages[target.index].config.config
        run.labels = {**run.labels, **options.labels}
    images: dict[str, Image] = {}
    for node in graph:
        for item in (node.base, *node.sources.values()):
            if isinstance(item, Image):
                images.setdefault(item.chain_id, item)
    # Of the images that stages build upon, the linter says it.
    sources = [item for node in graph for item in node.sources.values() if isinstance(item, Image)]
    return Plan(
        stages=tuple(stages.values()),
        images=tuple(images.values()),
        warnings=tuple(_list_warnings(dockerfile, options, sources)),
        epoch_s=_parse_epoch(options.build_args),
    )


def find_base_name(dockerfile: Dockerfile, options: PlanOptions) -> str:
    """What the FROM of the target names, expanded; through stages down to an image, or `scratch`."""
    stage: Stage = dockerfile.get_target(options.target)
    scope = _plan_global_scope(dockerfile, options, stage)
    while True:
        name = scope.expand(stage.base).text
        below = dockerfile.find_base(stage, name)
        if below is None:
            return name
        stage = below


def _plan_global_scope(dockerfile: Dockerfile, options: PlanOptions, target: Stage) -> GlobalScope:
    predefined = platform_args(options.platform, options.platform, target.name or "")
    scope = GlobalScope((), build_args=options.build_args, predefined=predefined, escape=dockerfile.escape)
    for instruction in dockerfile.global_args:
        with located(dockerfile, instruction.location):
            scope.declare(instruction)
    return scope


def _parse_epoch(build_args: Mapping[str, str]) -> int | None:
    text = build_args.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 11):
        raise UsageError(f"SOURCE_DATE_EPOCH is `{text[:40]}`", hint="it is a Unix time in seconds")
    return int(text)


def _list_warnings(dockerfile: Dockerfile, options: PlanOptions, sources: list[Image]) -> list[str]:
    warnings: list[str] = []
    declared = {argument.name for each in dockerfile.global_args for argument in each.arguments}
    for stage in dockerfile.stages:
        for instruction in stage.instructions:
            if isinstance(instruction, nodes.Arg):
                declared |= {argument.name for argument in instruction.arguments}
    for name in list_unused_build_args(options.build_args, declared):
        warnings.append(f"the build argument `{name}` is declared by no ARG, and so has no effect")
    for image in sources:
        if image.config.architecture != options.platform.architecture:
            warnings.append(
                f"the image `{image.reference or image.manifest_digest[:19]}` is for {image.config.architecture}; "
                f"this build is for {options.platform.architecture}"
            )
    syntax = dockerfile.directive("syntax")
    if syntax and not syntax.startswith(("docker/dockerfile", "docker.io/docker/dockerfile")):
        warnings.append(f"the directive `syntax={syntax}` is ignored: firebuild reads the file itself")
    return warnings


class _StagePlanner:
    """Plans one stage, instruction by instruction."""

    def __init__(
        self,
        dockerfile: Dockerfile,
        options: PlanOptions,
        global_scope: GlobalScope,
        node: GraphNode,
        parent: _StagePlanner | None,
        *,
        is_target: bool,
    ) -> None:
        self.dockerfile = dockerfile
        self.options = options
        self.node = node
        self.state: StageConfig
        self.scope: Scope
        if parent is not None:
            self.state = parent.state.fork()
            self.scope = parent.scope.fork()
        else:
            if isinstance(node.base, Image):
                self.state = StageConfig.from_image(node.base, options.platform)
            else:
                self.state = StageConfig.from_scratch(options.platform)
            self.scope = Scope(global_scope, self.state.environment())
        self.proxies = tuple(f"{name}={value}" for name, value in proxy_environment(options.build_args).items())
        self.steps: list[PlannedStep] = []
        self.mounts = MountPlanner(options.name, self.find_origin)
        made = (nodes.Run, nodes.Copy, nodes.Add, nodes.Workdir)
        self.before = options.pre_commands if is_target else ()
        self.after = options.post_commands if is_target else ()
        self.total = int(isinstance(node.base, Image | ContextSource)) + len(self.before) + len(self.after)
        self.total += sum(isinstance(each, made) for each in node.instructions)
        self.number = 0
        self.used: frozenset[str] = frozenset()
        self.epoch_s = _parse_epoch(options.build_args)

    def plan(self) -> PlannedStage:
        from_title = self.title(f"FROM {_base_text(self.node.base)}") if isinstance(self.node.base, Image) else ""
        if isinstance(self.node.base, ContextSource):
            self.take_context(self.node.base)
        for command in self.before:
            self.take_command(command, "--pre-build-command")
        for index, instruction in enumerate(self.node.instructions):
            with located(self.dockerfile, instruction.location):
                self.take(instruction, on_build=index < self.node.triggers)
        for command in self.after:
            self.take_command(command, "--post-build-command")
        base = self.node.base
        return PlannedStage(
            index=self.node.stage.index,
            label=self.node.stage.label,
            base=base.index if isinstance(base, Stage) else base if isinstance(base, Image) else None,
            from_title=from_title,
            location=self.node.stage.location,
            steps=tuple(self.steps),
            config=self.state.config,
            base_history=self.state.base_history,
            sources=tuple(sorted({each.index for each in self.node.sources.values() if isinstance(each, Stage)})),
        )

    def take(self, instruction: nodes.Instruction, *, on_build: bool) -> None:
        """Expand and check one instruction, and add its step or change the configuration."""
        display = _display(self.scope, instruction)
        expansion = expand_instruction(instruction, self.scope)
        expanded, self.used = expansion.instruction, frozenset(expansion.used)
        check_supported(expanded)
        match expanded:
            case nodes.Run():
                self.take_run(expanded, display, on_build)
            case nodes.Copy() | nodes.Add():
                self.take_copy(expanded, display, on_build)
            case nodes.Workdir():
                self.take_workdir(expanded, display, on_build)
            case _:
                self.state.apply(expanded, self.scope)

    def take_run(self, run: nodes.Run, display: str, on_build: bool) -> None:
        program = plan_run(run, self.state.shell)
        argv = program.argv
        if not argv:
            raise BuildError("RUN has no command")
        environment = dict(self.scope.run_environment)
        config = self.state.config.config
        mounts = self.mounts.plan(run, config.working_dir or "/")
        script = None
        if program.script is not None:
            script = InlineContent(run.heredocs[0].name, program.script.encode("utf-8", "surrogateescape"))
        network = "none" if "none" in (run.network, self.options.network) else "default"
        action = RunAction(
            argv=argv,
            env=tuple(
                sorted(
                    (*(f"{name}={value}" for name, value in environment.items()), *agent_variable(mounts, environment))
                )
            ),
            user=config.user,
            workdir=config.working_dir or "/",
            network=network,
            proxies=self.missing_proxies(),
            mounts=mounts,
            script=script,
        )
        arguments = self.scope.history_args()
        prefix = [f"|{len(arguments)}", *arguments] if arguments else []
        self.state.add_history("RUN " + " ".join([*prefix, *argv]) + " # buildkit", layer=True)
        self.add_step(run, action, display, on_build)

    def missing_proxies(self) -> tuple[str, ...]:
        """The proxy variables that no ENV and no ARG sets."""
        return tuple(pair for pair in self.proxies if pair.partition("=")[0] not in self.scope.run_environment)

    def take_command(self, command: str, option: str) -> None:
        """A command that no instruction names: as root, in `/`, by /bin/sh, with the variables that are set here."""
        action = RunAction(
            argv=(*DEFAULT_SHELL, command),
            env=tuple(sorted(f"{name}={value}" for name, value in self.scope.run_environment.items())),
            user="0:0",
            workdir="/",
            network="none" if self.options.network == "none" else "default",
            proxies=self.missing_proxies(),
        )
        self.state.add_history(f"RUN {' '.join(action.argv)} # firebuild {option}", layer=True)
        step = PlannedStep(
            id=f"{self.node.stage.index}/{len(self.steps)}",
            title=self.title(f"{option} {' '.join(command.split())}"),
            text=f"{option} {command}",
            location=self.node.stage.location,
            action=action,
            args={},
            position=f"{self.options.name}#{self.node.stage.label}/{len(self.steps)}",
            epoch_s=self.epoch_s,
            around=msgspec.structs.replace(self.look_around(), user="0:0", workdir="/", shell=DEFAULT_SHELL),
        )
        self.steps.append(step)

    def take_context(self, context: ContextSource) -> None:
        """A stage that builds upon a named context begins with a copy of all of it."""
        action = CopyAction(context, (".",), (), dest="/", dest_is_directory=True, chown="", chmod="")
        self.state.add_history(f"FROM the build context {context.name} # buildkit", layer=True)
        self.add_step(self.node.stage.start, action, f"FROM context {context.name}", False)

    def take_copy(self, copy: nodes.Copy | nodes.Add, display: str, on_build: bool) -> None:
        source = copy.source if isinstance(copy, nodes.Copy) else None
        origin = self.find_origin(source) if source is not None else None
        parents = isinstance(copy, nodes.Copy) and copy.parents
        remotes = parse_remotes(copy) if isinstance(copy, nodes.Add) else ()
        several = len(copy.sources) + len(copy.inline_files) > 1
        if several and not f"/{copy.destination}".endswith(("/", "/.", "/..")):
            raise DockerfileError(
                f"{copy.name} of several sources needs a folder as its destination",
                hint=f"end it with a slash: `{neutralise(copy.destination)}/`",
            )
        dest = _copy_dest(self.state.config.config.working_dir or "/", copy.destination)
        inline = tuple(
            InlineContent(each.name, each.content.encode("utf-8", "surrogateescape")) for each in copy.inline_files
        )
        action = CopyAction(
            origin=origin,
            sources=copy.sources,
            inline=inline,
            dest=dest,
            dest_is_directory=dest.endswith("/") or parents,
            chown=copy.chown,
            chmod=copy.chmod,
            # As in BuildKit a mode of its own keeps a copy from being linked.
            link=copy.link and not copy.chmod,
            parents=parents,
            exclude=copy.exclude,
            unpack=isinstance(copy, nodes.Add) and copy.unpack is not False,
            remotes=remotes,
        )
        flags = ["--parents"] if parents else []
        flags += [f"--chown={copy.chown}"] if copy.chown else []
        flags += [f"--chmod={copy.chmod}"] if copy.chmod else []
        words = [
            copy.name,
            *flags,
            *map(redact_urls, copy.sources),
            *(f"<<{each.name}" for each in copy.inline_files),
            copy.destination,
        ]
        self.state.add_history(" ".join(words) + " # buildkit", layer=True)
        self.add_step(copy, action, display, on_build)

    def find_origin(self, name: str) -> Origin:
        found = self.node.sources[name]
        if isinstance(found, Stage):
            return StageSource(found.index, found.label)
        if isinstance(found, ContextSource):
            return found
        return ImageSource(name, found)

    def take_workdir(self, workdir: nodes.Workdir, display: str, on_build: bool) -> None:
        config = self.state.config.config
        if not workdir.path:
            raise DockerfileError("WORKDIR needs a path")
        path = join_path(config.working_dir or "/", workdir.path)
        around = self.look_around()
        config.working_dir = path
        self.state.add_history(f"WORKDIR {path}", layer=path != "/")
        if path != "/":
            self.add_step(workdir, WorkdirAction(path, config.user), display, on_build, around)

    def add_step(
        self, instruction: nodes.Instruction, action: Action, display: str, on_build: bool,
        around: Surroundings | None = None,
    ) -> None:  # fmt: skip
        values, run = self.scope.run_environment, isinstance(action, RunAction)
        declared = [name for name in self.scope.declared if name in values and (run or name in self.used)]
        step = PlannedStep(
            id=f"{self.node.stage.index}/{len(self.steps)}",
            title=self.title(("ONBUILD " if on_build else "") + redact_urls(display)),
            text=redact_urls(instruction.text),
            location=instruction.location,
            action=action,
            args={name: values[name] for name in declared},
            position=f"{self.options.name}#{self.node.stage.label}/{len(self.steps)}",
            epoch_s=self.epoch_s,
            variables={} if run else {name: values[name] for name in self.used - set(declared) if name in values},
            around=around or self.look_around(),
        )
        self.steps.append(step)

    def look_around(self) -> Surroundings:
        config = self.state.config.config
        return Surroundings(
            env=tuple(sorted(f"{name}={value}" for name, value in self.scope.run_environment.items())),
            user=config.user,
            workdir=config.working_dir or "/",
            network=self.options.network,
            shell=self.state.shell,
        )

    def title(self, text: str) -> str:
        self.number += 1
        label = f"{self.node.stage.label} " if len(self.dockerfile.stages) > 1 else ""
        width = int(1 + math.log10(max(self.total, 1)))
        return f"[{label}{self.number:>{width}}/{self.total}] {text}"


def _base_text(image: Image | Stage | None) -> str:
    assert isinstance(image, Image)
    return f"{image.reference or ''}@{image.manifest_digest}".lstrip("@")


def _display(scope: Scope, instruction: nodes.Instruction) -> str:
    try:
        text = scope.expand_for_display(instruction.text)
    except DockerfileError:
        text = instruction.text
    name, space, rest = text.partition(" ")
    text = name.upper() + space + rest
    if isinstance(instruction, nodes.Run) and instruction.heredocs and is_lone_heredoc(instruction):
        lines = instruction.heredocs[0].text.strip().splitlines() or [""]
        text += f" ({lines[0]}{'...' if len(lines) > 1 else ''})"
    return text


def _copy_dest(workdir: str, destination: str) -> str:
    """Where a COPY goes: absolute and clean; a trailing slash stays, and `.` is a folder."""
    folder = destination in ("", ".") or destination.endswith(("/", "/."))
    path = join_path(workdir, destination or ".")
    return path if path == "/" or not folder else path + "/"
