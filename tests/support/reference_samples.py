"""What the reference page says about each entry of the code's tables, and the samples that show whether it is taken."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Note(msgspec.Struct, frozen=True):
    """`sample`: an instruction in a stage on `debian` (in a stage named `one`); `value`: what a flag takes."""

    note: str
    sample: str
    value: str = ""


INSTRUCTIONS: Mapping[str, Note] = {
    "ADD": Note("takes files from the build context like COPY; local archives are unpacked", "ADD $VAR /"),
    "ARG": Note("declares build arguments: many at once, with defaults or without", "ARG A=$VAR"),
    "CMD": Note("what a machine runs, or the arguments of the entrypoint", 'CMD ["$VAR"]'),
    "COPY": Note("takes files from the build context, a stage or an image", "COPY $VAR /"),
    "ENTRYPOINT": Note("what a machine runs; clears an inherited CMD", 'ENTRYPOINT ["$VAR"]'),
    "ENV": Note("sets variables for the steps behind it and for the machine", "ENV A=$VAR"),
    "EXPOSE": Note("names ports, `80`, `80/udp`, `8000-8010`; publishes none", "EXPOSE ${VAR:-1}"),
    "FROM": Note("begins a stage on an image, a stored rootfs, another stage or `scratch`", "FROM debian AS other"),
    "HEALTHCHECK": Note("how to see whether the machine is well, or `NONE`", "HEALTHCHECK CMD test $VAR"),
    "LABEL": Note("adds labels to the image", "LABEL a=$VAR"),
    "MAINTAINER": Note("sets the author; deprecated", "MAINTAINER $VAR"),
    "ONBUILD": Note("an instruction for the stages that build upon this image", "ONBUILD ENV A=$VAR"),
    "RUN": Note(
        "runs a command in the build machine; the builder replaces variables in its mounts only", "RUN echo $VAR"
    ),
    "SHELL": Note("what runs the shell forms behind it", 'SHELL ["/bin/$VAR", "-c"]'),
    "STOPSIGNAL": Note("the signal that stops the machine's program", "STOPSIGNAL ${VAR:-9}"),
    "USER": Note("the user, and group, of the steps behind it and of the machine's program", "USER $VAR"),
    "VOLUME": Note("names folders whose content is not the image's", "VOLUME /$VAR"),
    "WORKDIR": Note("the working directory, which is made if it is not there", "WORKDIR /$VAR"),
}

_CHECKSUM = "sha256:" + "0" * 64

FLAG_NOTES: Mapping[tuple[str, str], Note] = {
    ("ADD", "checksum"): Note(
        "what a URL must have", f"ADD --checksum={_CHECKSUM} https://example.org/a /", "`sha256:…`"
    ),
    ("ADD", "chmod"): Note("the mode of what is added", "ADD --chmod=0644 a /", "octal or symbolic"),
    ("ADD", "chown"): Note("the owner of what is added", "ADD --chown=1:1 a /", "`user[:group]`"),
    ("ADD", "exclude"): Note("leaves out what matches", "ADD --exclude=*.log a /", "a pattern"),
    ("ADD", "keep-git-dir"): Note("keeps `.git`", "ADD --keep-git-dir=true https://example.org/a.git /"),
    ("ADD", "link"): Note("a layer of its own, whatever is below it", "ADD --link a /"),
    ("ADD", "unpack"): Note("whether archives are unpacked", "ADD --unpack=true a /"),
    ("COPY", "chmod"): Note("the mode of what is copied", "COPY --chmod=0644 a /", "octal or symbolic"),
    ("COPY", "chown"): Note("the owner of what is copied", "COPY --chown=1:1 a /", "`user[:group]`"),
    ("COPY", "exclude"): Note("leaves out what matches", "COPY --exclude=*.log a /", "a pattern"),
    ("COPY", "from"): Note("where to copy from", "COPY --from=debian /a /", "a stage's name or index, or an image"),
    ("COPY", "link"): Note("a layer of its own, whatever is below it", "COPY --link a /"),
    ("COPY", "parents"): Note("keeps the folders of the sources", "COPY --parents a/b /"),
    ("FROM", "platform"): Note(
        "what the stage is for; the build machine's own platform",
        "FROM --platform=$BUILDPLATFORM debian",
        "`linux/amd64`",
    ),
    ("HEALTHCHECK", "interval"): Note("the time between two checks", "HEALTHCHECK --interval=5s CMD true", "`30s`"),
    ("HEALTHCHECK", "retries"): Note("how many must fail", "HEALTHCHECK --retries=3 CMD true", "a number"),
    ("HEALTHCHECK", "start-interval"): Note(
        "the time between two checks at first", "HEALTHCHECK --start-interval=1s CMD true", "`5s`"
    ),
    ("HEALTHCHECK", "start-period"): Note(
        "how long failures do not count", "HEALTHCHECK --start-period=5s CMD true", "`10s`"
    ),
    ("HEALTHCHECK", "timeout"): Note("how long a check may take", "HEALTHCHECK --timeout=5s CMD true", "`30s`"),
    ("RUN", "mount"): Note("see below", "RUN --mount=type=tmpfs,target=/t true", "`type=…,…`"),
    ("RUN", "network"): Note("what the command reaches", "RUN --network=none true", "`default` or `none`"),
    ("RUN", "security"): Note("the sandbox is the microVM", "RUN --security=sandbox true", "`sandbox`"),
}

MOUNT_NOTES: Mapping[str, Note] = {
    "bind": Note("files of the context, a stage or an image", "RUN --mount=type=bind,from=debian,target=/m true"),
    "cache": Note("a folder that outlives the build", "RUN --mount=type=cache,target=/m true"),
    "secret": Note("a secret, as a file or a variable", "RUN --mount=type=secret,id=s true"),
    "ssh": Note("the caller's SSH agent", "RUN --mount=type=ssh true"),
    "tmpfs": Note("an empty folder in memory", "RUN --mount=type=tmpfs,target=/m true"),
}

MOUNT_KEY_NOTES: Mapping[str, str] = {
    "env": "the variable that a secret goes to",
    "from": "a stage or an image; never expanded",
    "gid": "the group of a cache, secret or ssh mount",
    "id": "names a cache, a secret or an agent",
    "mode": "the mode of a cache, secret or ssh mount, octal",
    "readonly": "the step cannot write to it",
    "readwrite": "the step can write to it",
    "required": "a secret or an agent that is not there is an error",
    "sharing": "of a cache: `shared`, `private` or `locked`",
    "size": "of a tmpfs, at most",
    "source": "the path in `from`",
    "target": "where it is mounted; below the working directory if it is relative",
    "type": "comes before the keys that depend on it",
    "uid": "the owner of a cache, secret or ssh mount",
}

# What stands behind `FROM debian` is the example that the page shows.
FEATURES: tuple[tuple[str, str], ...] = (
    ("a base of its own", "FROM scratch\nCOPY a /\n"),
    ("a stage as base", "FROM debian AS one\nFROM one\n"),
    ("a heredoc as the script", "FROM debian\nRUN <<EOF\ntrue\nEOF\n"),
    ("a heredoc with an interpreter", "FROM debian\nRUN <<EOF\n#!/bin/sh\ntrue\nEOF\n"),
    ("a heredoc for a command", "FROM debian\nRUN cat <<EOF\ntext\nEOF\n"),
    ("a heredoc as a file", "FROM debian\nCOPY <<EOF /etc/motd\ntext\nEOF\n"),
    ("wildcards in the context", "FROM debian\nCOPY *.txt /\n"),
    ("wildcards in a stage or an image", "FROM debian\nCOPY --from=debian /etc/*.conf /\n"),
    ("a symbolic mode", "FROM debian\nCOPY --chmod=u+x,go-w a /\n"),
    ("ADD of a URL", "FROM debian\nADD https://example.org/a /\n"),
    ("ADD of a git repository", "FROM debian\nADD https://example.org/a.git#v1 /src\n"),
    ("a host's network", "FROM debian\nRUN --network=host true\n"),
    ("a privileged step", "FROM debian\nRUN --security=insecure true\n"),
    ("a stage for another platform", "FROM --platform=linux/s390x debian\n"),
)

FORMS = (
    "$x",
    "${x}",
    "${x:-word}",
    "${x-word}",
    "${x:+word}",
    "${x+word}",
    "${x:?why}",
    "${x?why}",
    "${x#*.}",
    "${x##*.}",
    "${x%.*}",
    "${x%%.*}",
    "${x/a/o}",
    "${x//a/o}",
    "\\$x",
    "'$x'",
    '"$x"',
)
