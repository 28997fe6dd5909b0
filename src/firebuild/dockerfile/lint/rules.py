"""The rules of the linter as data: BuildKit's names, what each is about, and its message."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

PAGE = "docs/reference/lint-rules.md"


class Rule(msgspec.Struct, frozen=True):
    """A rule. `description`: one sentence; `message`: with the fields that `render` fills; `advice`: why, and what to do.

    `experimental`: off unless a `check` directive asks for it.
    """

    name: str
    description: str
    message: str
    advice: str
    experimental: bool = False

    @property
    def anchor(self) -> str:
        """Its place in the reference page."""
        return f"{PAGE}#{self.name.lower()}"

    def render(self, **fields: str) -> str:
        """The message of one case. The fields must be fit for a terminal."""
        return self.message.format(**fields)


STAGE_NAME_CASING = Rule(
    "StageNameCasing",
    "A stage's name is written in lower case.",
    "the stage name {name} is not in lower case",
    "Stage names count in any case, so a mixed one only suggests a difference that is none. Write it in lower case.",
)
FROM_AS_CASING = Rule(
    "FromAsCasing",
    "`AS` is written in the case of its `FROM`.",
    "{keyword} is not in the case of {instruction}",
    "Write `FROM … AS …` or `from … as …`.",
)
NO_EMPTY_CONTINUATION = Rule(
    "NoEmptyContinuation",
    "No empty line stands inside a continued instruction.",
    "an empty line stands inside the instruction",
    "Docker has announced that such lines will be errors. Take them out, or make them comments, which may stand there. "
    "The warning points at the first of them.",
)
CONSISTENT_INSTRUCTION_CASING = Rule(
    "ConsistentInstructionCasing",
    "All instructions are written in one case.",
    "{instruction} is not in {case} case, as most instructions of this file are",
    "Write all of them in upper case, or all in lower case. `ARG`s before the first `FROM` are not counted.",
)
DUPLICATE_STAGE_NAME = Rule(
    "DuplicateStageName",
    "No two stages have the same name.",
    "an earlier stage has the name {name} too",
    "What the name then means depends on where it is used. Give every stage a name of its own.",
)
RESERVED_STAGE_NAME = Rule(
    "ReservedStageName",
    "No stage has a reserved name.",
    "{name} is a reserved name and should not name a stage",
    "`scratch` is the empty base, and `context` the build context. Choose another name.",
)
JSON_ARGS_RECOMMENDED = Rule(
    "JSONArgsRecommended",
    "CMD and ENTRYPOINT are written in the JSON form.",
    "{instruction} has the shell form; the JSON form lets the program get signals itself",
    "In the shell form a shell stands between the machine and the program, and does not hand signals on: the program is "
    'killed where it should be stopped. Write `CMD ["program", "argument"]`. Where a shell is wanted, say so with SHELL.',
)
MAINTAINER_DEPRECATED = Rule(
    "MaintainerDeprecated",
    "MAINTAINER is not used.",
    "MAINTAINER is deprecated; a label names the author",
    'Write `LABEL org.opencontainers.image.authors="…"`.',
)
UNDEFINED_ARG_IN_FROM = Rule(
    "UndefinedArgInFrom",
    "FROM uses only arguments that an ARG before the first FROM declares, or predefined ones.",
    "FROM uses the argument {name}, which is not declared{suggestion}",
    "An undeclared argument is empty, and a --build-arg of its name has no effect. Declare it before the first FROM.",
)
WORKDIR_RELATIVE_PATH = Rule(
    "WorkdirRelativePath",
    "The first WORKDIR of a stage is absolute.",
    "the working directory {path} is relative to whatever the base image has",
    "Another version of the base may have another working directory. Begin with an absolute path; further ones may be "
    "relative. A stage goes on where the stage that it builds upon left off.",
)
UNDEFINED_VAR = Rule(
    "UndefinedVar",
    "Variables are defined before they are used.",
    "the variable {name} is not defined{suggestion}",
    "An undefined variable is empty. ENV, ARG and the base image's environment define variables, and so does an ARG "
    "without a value. Not looked at is what a shell expands: RUN, CMD and ENTRYPOINT; nor are the ports of EXPOSE. A form "
    "with a default, `${x:-y}`, counts as a use, too. Nothing is said of a stage whose base image is not known.",
)
MULTIPLE_INSTRUCTIONS_DISALLOWED = Rule(
    "MultipleInstructionsDisallowed",
    "A stage has at most one CMD, one ENTRYPOINT and one HEALTHCHECK.",
    "a later {instruction} of this stage replaces this one",
    "Only the last one counts. Take the others out. The warning points at the one without effect.",
)
LEGACY_KEY_VALUE_FORMAT = Rule(
    "LegacyKeyValueFormat",
    "ENV and LABEL are written with `=`.",
    "`{instruction} name value` is the old form; write `{instruction} name=value`",
    "The old form takes the whole rest of the line as one value, which is easily misread.",
)
INVALID_BASE_IMAGE_PLATFORM = Rule(
    "InvalidBaseImagePlatform",
    "The base image is made for the platform that is built for.",
    "the base image {image} is for {actual}, and the stage for {expected}",
    "Programs of another architecture do not run. Choose an image that exists for this one.",
)
REDUNDANT_TARGET_PLATFORM = Rule(
    "RedundantTargetPlatform",
    "FROM does not name the platform that it has anyway.",
    "--platform={platform} is what FROM takes without the flag",
    "Take the flag out.",
)
SECRETS_USED_IN_ARG_OR_ENV = Rule(
    "SecretsUsedInArgOrEnv",
    "Secrets are not given by ARG or ENV.",
    "{instruction} {name} looks like a secret, and everybody who has the image can read it",
    "Both end in the image's history or configuration. Use `RUN --mount=type=secret`. The name alone decides: it is "
    "suspicious if one of its parts (split at `_`) is apikey, auth, credential(s), key, passwd, password, pword, secret or "
    "token, and none is public, file or version.",
)
INVALID_DEFAULT_ARG_IN_FROM = Rule(
    "InvalidDefaultArgInFrom",
    "Without any --build-arg each FROM still names an image.",
    "without build arguments the base {base} is empty or no image name",
    "Give the ARG a default, or write one into the FROM: `FROM image:${VERSION:-1}`.",
)
FROM_PLATFORM_FLAG_CONST_DISALLOWED = Rule(
    "FromPlatformFlagConstDisallowed",
    "The platform of FROM is not a constant.",
    "FROM --platform has the constant value {platform}",
    "A constant ties the file to one architecture. Take the flag out, or use $BUILDPLATFORM or $TARGETPLATFORM. A stage "
    "whose name holds the platform's system or architecture, such as `build-arm64`, may have it.",
)
COPY_IGNORED_FILE = Rule(
    "CopyIgnoredFile",
    "COPY and ADD take nothing that the ignore file leaves out.",
    "{instruction} takes {source}, which the ignore file leaves out of the build context",
    "Change the ignore file or the source. Nothing is said where the ignore file has exceptions (`!pattern`).",
)
INVALID_DEFINITION_DESCRIPTION = Rule(
    "InvalidDefinitionDescription",
    "A comment above ARG, or above FROM with a name, describes what the instruction defines.",
    "the comment above {instruction} is no description of the form `# {name} …`",
    "Begin the comment with the name of the argument or the stage. Where it is no description, put a line with nothing "
    "but `#` between it and the instruction.",
    experimental=True,
)
EXPOSE_PROTO_CASING = Rule(
    "ExposeProtoCasing",
    "The protocol of a port is written in lower case.",
    "the protocol of the port {port} is not in lower case",
    "Write `80/tcp`.",
)
EXPOSE_INVALID_FORMAT = Rule(
    "ExposeInvalidFormat",
    "EXPOSE names ports of the machine alone.",
    "EXPOSE takes no address and no host port, as {port} has",
    "They have no effect, and Docker has announced that they will be errors. Ports are published when a machine is run.",
)

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        rule.name: rule
        for rule in (
            STAGE_NAME_CASING,
            FROM_AS_CASING,
            NO_EMPTY_CONTINUATION,
            CONSISTENT_INSTRUCTION_CASING,
            DUPLICATE_STAGE_NAME,
            RESERVED_STAGE_NAME,
            JSON_ARGS_RECOMMENDED,
            MAINTAINER_DEPRECATED,
            UNDEFINED_ARG_IN_FROM,
            WORKDIR_RELATIVE_PATH,
            UNDEFINED_VAR,
            MULTIPLE_INSTRUCTIONS_DISALLOWED,
            LEGACY_KEY_VALUE_FORMAT,
            INVALID_BASE_IMAGE_PLATFORM,
            REDUNDANT_TARGET_PLATFORM,
            SECRETS_USED_IN_ARG_OR_ENV,
            INVALID_DEFAULT_ARG_IN_FROM,
            FROM_PLATFORM_FLAG_CONST_DISALLOWED,
            COPY_IGNORED_FILE,
            INVALID_DEFINITION_DESCRIPTION,
            EXPOSE_PROTO_CASING,
            EXPOSE_INVALID_FORMAT,
        )
    }
)
