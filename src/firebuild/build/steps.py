"""What a plan is made of: bases, steps, stages. Plain data; everything in it is expanded and checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from firebuild.build.copy import InlineContent
from firebuild.dockerfile.location import Location
from firebuild.names import Digest
from firebuild.store.images import History, Image, ImageConfig

if TYPE_CHECKING:
    from firebuild.build.sources.remote import RemoteAdd


class StageSource(msgspec.Struct, frozen=True, tag="stage"):
    """COPY --from a stage of this build. `index`: its place in the Dockerfile."""

    index: int
    label: str


class ImageSource(msgspec.Struct, frozen=True, tag="image"):
    """COPY --from an image of the store. `reference`: as written."""

    reference: str
    image: Image


class ContextSource(msgspec.Struct, frozen=True, tag="context"):
    """COPY --from, or FROM, a named build context. `name`: as firebuild.build.sources.spec normalises it."""

    name: str


Origin = StageSource | ImageSource | ContextSource


class BindMount(msgspec.Struct, frozen=True, tag="bind"):
    """A path of the build context (`origin` None), of another stage, image or context, or of nothing (`empty`)."""

    target: str
    origin: Origin | None
    source: str
    read_only: bool
    empty: bool = False


class TmpfsMount(msgspec.Struct, frozen=True, tag="tmpfs"):
    """Memory. `size_bytes`: 0 without a limit."""

    target: str
    size_bytes: int
    read_only: bool


class CacheMount(msgspec.Struct, frozen=True, tag="cache"):
    """A folder that is kept between builds. `key`: of the disk that it is kept on; `origin`, `source`: what it begins
    with; `sharing`: shared, private or locked."""

    target: str
    id: str
    key: str
    sharing: str
    read_only: bool
    mode: int
    uid: int
    gid: int
    origin: Origin | None = None
    source: str = "/"


class SecretMount(msgspec.Struct, frozen=True, tag="secret"):
    """A secret of the caller's: a file at `target`, the variable `env`, or both."""

    id: str
    target: str | None
    env: str | None
    required: bool
    mode: int
    uid: int
    gid: int


class SshMount(msgspec.Struct, frozen=True, tag="ssh"):
    """A socket that leads to an SSH agent of the caller's."""

    id: str
    target: str
    required: bool
    mode: int
    uid: int
    gid: int


RunMount = BindMount | TmpfsMount | CacheMount | SecretMount | SshMount


class RunAction(msgspec.Struct, frozen=True, tag="run"):
    """A command in a new layer. `env`: the whole environment as `K=V`, sorted; `network`: default or none.

    `proxies`: further variables that the command gets and that are no part of the key; `script`: a file that stands in
    SCRIPT_FOLDER meanwhile.
    """

    argv: tuple[str, ...]
    env: tuple[str, ...]
    user: str
    workdir: str
    network: str
    proxies: tuple[str, ...] = ()
    mounts: tuple[RunMount, ...] = ()
    script: InlineContent | None = None


class CopyAction(msgspec.Struct, frozen=True, tag="copy"):
    """A COPY or ADD. `origin`: where the sources are, None for the build context; `dest`: absolute, with its trailing slash.

    `unpack`: archives among the sources are to be unpacked (ADD). `chmod`: octal, symbolic or empty. `link`: the layer does
    not depend on what is below it. `parents`, `exclude`: as the flags. `remotes`: for each source what
    ADD fetches, None for a path; empty for a COPY.
    """

    origin: Origin | None
    sources: tuple[str, ...]
    inline: tuple[InlineContent, ...]
    dest: str
    dest_is_directory: bool
    chown: str
    chmod: str
    unpack: bool = False
    remotes: tuple[RemoteAdd | None, ...] = ()
    link: bool = False
    parents: bool = False
    exclude: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """The sources that are paths."""
        return tuple(
            source for number, source in enumerate(self.sources) if not self.remotes or self.remotes[number] is None
        )


class WorkdirAction(msgspec.Struct, frozen=True, tag="workdir"):
    """A folder that must exist. `user`: its owner if it has to be made."""

    path: str
    user: str


Action = RunAction | CopyAction | WorkdirAction


class Surroundings(msgspec.Struct, frozen=True):
    """What a RUN at this place of its stage would have: for whoever looks around there. `env`: as `K=V`, sorted; `shell`:
    what runs shell forms."""

    env: tuple[str, ...] = ()
    user: str = ""
    workdir: str = "/"
    network: str = "default"
    shell: tuple[str, ...] = ()


class PlannedStep(msgspec.Struct, frozen=True):
    """One layer to make. `id`: unique in its plan; `title`: for progress, `[builder 2/5] RUN make`; `text`: the
    instruction as written, as one line.

    `args`: the build arguments in force, for other steps than RUN those that they name; `variables`: the ENV that such a
    step names; `epoch_s`: the newest time that a file of its layer may have; `position`: names the step across builds of
    the same Dockerfile; `around`: decides nothing of the result.
    """

    id: str
    title: str
    text: str
    location: Location
    action: Action
    args: dict[str, str]
    position: str
    variables: dict[str, str] = {}
    around: Surroundings = Surroundings()
    epoch_s: int | None = None


class PlannedStage(msgspec.Struct, frozen=True):
    """One stage that is needed. `base`: the index of a stage, an image, or None for scratch; `from_title`: for progress.

    `config`: the image configuration at its end, without layers; its `history` holds the entries that this stage adds
    (those without a `created` get their time from the steps' layers), `base_history` those of its base image.
    """

    index: int
    label: str
    base: int | Image | None
    from_title: str
    location: Location
    steps: tuple[PlannedStep, ...]
    config: ImageConfig
    base_history: tuple[History, ...]
    sources: tuple[int, ...]


class Plan(msgspec.Struct, frozen=True):
    """A whole build. `stages`: only the needed ones, in the Dockerfile's order; the last is the target's.

    `images`: every image that is a base or a source; `warnings`: what the user should know; `epoch_s`:
    SOURCE_DATE_EPOCH, or None.
    """

    stages: tuple[PlannedStage, ...]
    images: tuple[Image, ...]
    warnings: tuple[str, ...]
    epoch_s: int | None

    @property
    def target(self) -> PlannedStage:
        """The stage whose result is the build's."""
        return self.stages[-1]

    @property
    def root_image(self) -> Image | None:
        """The image at the bottom of the target's stage, through the stages that it stands on; None for scratch."""
        stage = self.target
        while isinstance(stage.base, int):
            stage = self.get_stage(stage.base)
        return stage.base

    def get_stage(self, index: int) -> PlannedStage:
        """The planned stage of that index in the Dockerfile."""
        return next(stage for stage in self.stages if stage.index == index)


class ResultLayer(msgspec.Struct, frozen=True):
    """A layer as the store has it. `size` is the blob's, in bytes."""

    diff_id: Digest
    digest: Digest
    size: int
    media_type: str
