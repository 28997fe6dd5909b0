"""Cases: what both refuse, and that it is for the same reason."""

from __future__ import annotations

from tests.support.differential.case import BASE, Case, Item, Link, Refusal


def _bad(
    name: str, lines: str, docker: str, firebuild: str, files: dict[str, Item] | None = None, **rest: object
) -> Case:
    return Case(f"refused-{name}", f"FROM {BASE}\n{lines}\n", files or {}, refused=Refusal(docker, firebuild), **rest)  # type: ignore[arg-type]


CASES = (
    _bad("run-fails", "RUN exit 3", "exit code: 3", "exit code 3"),
    _bad("command-not-found", "RUN no-such-thing", "exit code: 127", "exit code 127"),
    _bad("missing-source", "COPY gone /x", "not found", "not in the build context"),
    _bad("source-outside", "COPY ../x /x", "not found|[Ff]orbidden|outside", "outside the build context"),
    _bad("source-that-is-ignored", "COPY f /x", "not found", r"\.dockerignore", {"f": "", ".dockerignore": "f\n"}),
    _bad("link-out-of-the-context", "COPY l /x", "not found", "not in the build context", {"l": Link("/etc/hostname")}),
    _bad(
        "wildcard-of-a-link-to-nowhere",
        "COPY l* /x/",
        "not found",
        "not in the build context",
        {"l": Link("/no/where")},
    ),
    _bad(
        "folder-over-a-file",
        "COPY d /etc/motd",
        "not a directory|cannot copy to non-directory",
        "not a folder|not a directory",
        {"d/f": ""},
    ),
    _bad("file-below-a-file", "COPY f /etc/motd/x", "not a directory", "not a folder|not a directory", {"f": ""}),
    _bad(
        "folder-entry-over-a-file",
        "RUN mkdir /d && touch /d/s\nCOPY d /d",
        "cannot|not a directory",
        "folder|directory",
        {"d/s/f": ""},
    ),
    _bad(
        "file-entry-over-a-folder",
        "RUN mkdir -p /d/s\nCOPY d /d",
        "cannot|is a directory",
        "folder|directory|already there",
        {"d/s": ""},
    ),
    _bad(
        "several-sources-without-a-slash",
        "COPY a b /x",
        "destination must be a directory",
        "needs a folder",
        {"a": "", "b": ""},
        since=(23, 0),
    ),
    _bad(
        "from-missing-path",
        f"FROM {BASE}\nCOPY --from=0 /gone /x",
        "not found|no such file",
        "does not exist|not found",
    ),
    _bad(
        "unknown-user-in-chown",
        "COPY --chown=who f /x",
        "unable to find user|not found|invalid",
        "not in the image|user",
        {"f": ""},
        since=(23, 0),
    ),
    _bad("unknown-user-in-run", "USER who\nRUN true", "unable to find user", "not in the image|user"),
    _bad("unknown-instruction", "COPPY a b", "unknown instruction", "unknown instruction"),
    _bad("unknown-flag", "COPY --nope=1 a b", "[Uu]nknown flag", "flag"),
    _bad("copy-needs-two", "COPY a", "requires at least two arguments", "COPY"),
    _bad("env-needs-pairs", "ENV A", "must have two arguments", "ENV"),
    _bad("env-blank-name", "ENV =x", "names can not be blank", "ENV|name"),
    _bad("onbuild-of-onbuild", "ONBUILD ONBUILD RUN true", "Chaining ONBUILD", "ONBUILD"),
    _bad("onbuild-from", "ONBUILD FROM x", "FROM isn't allowed", "FROM"),
    _bad("shell-in-shell-form", "SHELL /bin/sh -c", "SHELL requires the arguments to be in JSON", "SHELL|JSON"),
    _bad("healthcheck-unknown", "HEALTHCHECK WHAT x", "[Uu]nknown type", "HEALTHCHECK"),
    _bad(
        "healthcheck-interval",
        "HEALTHCHECK --interval=0.1ms CMD x",
        "cannot be less than",
        "less than|at least|interval",
    ),
    _bad("expose-no-port", "EXPOSE eighty", "invalid|Invalid", "port"),
    _bad("stopsignal-unknown", "STOPSIGNAL SIGNOPE", "Invalid signal|invalid signal", "signal"),
    _bad("volume-empty", "VOLUME", "requires at least one argument", "VOLUME"),
    _bad("expansion-unsupported", "ENV A=${X!y}", "unsupported modifier|missing", "modifier|`!`|\\$\\{"),
    _bad("expansion-unfinished", "ENV A=${X", "missing|unexpected EOF|syntax error", "\\$\\{|\\}"),
    _bad("quote-unfinished", "WORKDIR 'x", "unexpected end of statement", "quote"),
    _bad("add-url-missing", "ADD @HTTP@/missing /x", "404", "404"),
    _bad("add-checksum-of-copy", "COPY --checksum=sha256:00 f /x", "[Uu]nknown flag", "checksum", {"f": ""}),
    _bad("workdir-on-a-file", "WORKDIR /etc/motd", "not a directory|cannot", "not a folder|file"),
    _bad("chmod-no-number", "COPY --chmod=abc f /x", "invalid|chmod", "mode", {"f": ""}, since=(23, 0)),
    _bad("mount-unknown-type", "RUN --mount=type=nope,target=/x true", "unsupported mount type|invalid", "mount|type"),
    _bad(
        "bind-of-nothing",
        "RUN --mount=source=gone,target=/x true",
        "not found",
        "not in the build context|not found|does not exist",
    ),
    _bad("target-unknown", "RUN true", "target stage.*could not be found|not be found", "stage", target="nope"),
    Case(
        "refused-empty-file",
        "# nothing\n",
        refused=Refusal("no build stage|empty|no instructions", "empty|FROM|instruction"),
    ),
    Case("refused-no-from", "RUN true\n", refused=Refusal("no build stage in current context", "FROM")),
    Case(
        "refused-unknown-image",
        "FROM nowhere.invalid/no/such:1\n",
        refused=Refusal("nowhere.invalid", "nowhere.invalid"),
    ),
    Case("refused-empty-base", "ARG X\nFROM $X\n", refused=Refusal("base name.*should not be blank", "empty")),
    Case(
        "refused-two-directives",
        f"# escape=\\\n# escape=`\nFROM {BASE}\n",
        refused=Refusal("only one|escape", "escape"),
    ),
)
