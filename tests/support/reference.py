"""Fills the tables of the reference pages from the code's own tables and from what the code does with small samples.

Between `<!-- table: name -->` and `<!-- end -->` stands what this module makes; tests/style fails where they differ.
Write them anew with: python -m tests.support.reference
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from firebuild.build.plan import PlanOptions, plan_build
from firebuild.dockerfile import expand, ignore, lexer, mounts, parser, scope
from firebuild.dockerfile.errors import LocatedDockerfileError
from firebuild.dockerfile.expansion import expand_instruction
from firebuild.dockerfile.flags import BOOLEAN, FLAGS, REFUSED_FLAGS, TEXTS
from firebuild.dockerfile.lint.rules import RULES, Rule
from firebuild.dockerfile.nodes import Onbuild
from firebuild.dockerfile.scope import Platform, Scope, platform_args
from firebuild.dockerfile.stages import parse_dockerfile
from firebuild.errors import DockerfileError, FirebuildError
from firebuild.names import Digest, Reference
from firebuild.store.blobs import Descriptor
from firebuild.store.images import CONFIG_TYPE, Image, ImageConfig, Manifest
from tests.support.reference_commands import command_sections
from tests.support.reference_options import option_rows, retired_rows
from tests.support.reference_samples import FEATURES, FLAG_NOTES, FORMS, INSTRUCTIONS, MOUNT_KEY_NOTES, MOUNT_NOTES

ROOT = Path(__file__).parents[2]
PAGES = (
    Path("docs/reference/dockerfile.md"),
    Path("docs/reference/lint-rules.md"),
    Path("docs/reference/build-options.md"),
    Path("docs/reference/cli.md"),
)
LINT_CASES = ROOT / "tests" / "data" / "lint"
AMD64 = Platform("linux", "amd64")

_TABLE = re.compile(r"(<!-- table: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_VALUES = {BOOLEAN: "true or false", TEXTS: "may be given many times"}


def render_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def find_refusal(text: str) -> str | None:
    """What a build of a Dockerfile is refused with before anything runs; None if it is planned."""
    config = ImageConfig(architecture="amd64", os="linux")
    digest = Digest("sha256:" + "0" * 64)

    def get_image(reference: Reference) -> Image:
        manifest = Manifest(schema_version=2, config=Descriptor(CONFIG_TYPE, digest, 2), layers=[])
        return Image(reference.full, digest, manifest, digest, config, [], None, 0)

    try:
        plan_build(parse_dockerfile(text.encode()), PlanOptions(name="sample", platform=AMD64), get_image)
    except LocatedDockerfileError as error:
        return error.problem
    except FirebuildError as error:
        return re.sub(r"^Dockerfile:\d+:\d+: ", "", error.message)
    return None


def expands_variables(name: str) -> bool:
    """Whether the builder replaces variables in an instruction, by its sample."""
    dockerfile = parse_dockerfile(f"FROM scratch\n{INSTRUCTIONS[name].sample}\n".encode())
    instruction = dockerfile.stages[-1].instructions[-1] if name != "FROM" else None
    if instruction is None or isinstance(instruction, Onbuild):
        return name == "FROM"
    global_scope = scope.GlobalScope((), build_args={}, predefined={})
    return "VAR" in expand_instruction(instruction, Scope(global_scope, {"VAR": "1"})).used


def instruction_table() -> str:
    """Every instruction and what holds for it."""
    rows = []
    for name in parser.INSTRUCTION_NAMES:
        facts = INSTRUCTIONS[name]
        refusal = find_refusal(f"FROM debian\n{facts.sample}\n")
        rows.append(
            (
                f"`{name}`",
                facts.note if refusal is None else f"not taken: {refusal}",
                "yes" if name in parser.JSON_FORM_INSTRUCTIONS or name == "HEALTHCHECK" else "no",
                "yes" if expands_variables(name) else "no",
                "no" if name in parser.REFUSED_TRIGGERS else "yes",
            )
        )
    return render_table(("Instruction", "What it does", "JSON form", "Variables", "ONBUILD"), rows)


def flag_table() -> str:
    """Every flag, what it takes, and whether a build takes it."""
    rows = []
    for instruction, flags in FLAGS.items():
        for flag, kind in sorted(flags.items()):
            note = FLAG_NOTES[instruction, flag]
            refusal = find_refusal(f"FROM debian AS one\n{note.sample}\n")
            taken = "yes" if refusal is None else f"no: {refusal}"
            value = "; ".join(part for part in (note.value, _VALUES.get(kind, "")) if part)
            rows.append((f"`{instruction} --{flag}`", value, note.note, taken))
    for (instruction, flag), reason in REFUSED_FLAGS.items():
        rows.append((f"`{instruction} --{flag}`", "", "", f"no: {reason}"))
    return render_table(("Flag", "Value", "Meaning", "Taken"), rows)


def mount_table() -> str:
    """Every type of RUN --mount."""
    rows = []
    for kind in mounts.MOUNT_TYPES:
        note = MOUNT_NOTES[kind]
        refusal = find_refusal(f"FROM debian\n{note.sample}\n")
        rows.append((f"`type={kind}`", note.note, "yes" if refusal is None else f"no: {refusal}"))
    return render_table(("Mount", "Meaning", "Taken"), rows)


def mount_key_table() -> str:
    """Every key of RUN --mount."""
    rows = []
    for key in sorted(set(mounts.MOUNT_KEYS.values())):
        others = sorted(other for other, meant in mounts.MOUNT_KEYS.items() if meant == key and other != key)
        rows.append((f"`{key}`", ", ".join(f"`{other}`" for other in others), MOUNT_KEY_NOTES[key]))
    return render_table(("Key", "Also written", "Meaning"), rows)


def feature_table() -> str:
    """What else a file may hold, and whether a build takes it."""
    rows = []
    for title, sample in FEATURES:
        refusal = find_refusal(sample)
        example = " ⏎ ".join(sample.removeprefix("FROM debian\n").splitlines())
        rows.append((title, f"`{example}`", "yes" if refusal is None else f"no: {refusal}"))
    return render_table(("Feature", "Example", "Taken"), rows)


def form_table() -> str:
    """Every form of expansion, and what it gives for an unset, an empty and a set variable."""
    cases: tuple[Mapping[str, str], ...] = ({}, {"x": ""}, {"x": "a.tar.gz"})
    rows = []
    for form in FORMS:
        cells = [f"`{form}`"]
        for variables in cases:
            try:
                text = expand.expand(form, variables).text
                cells.append(f"`{text}`" if text else "empty")
            except DockerfileError as error:
                cells.append(f"error: {error.message}")
        rows.append(cells)
    return render_table(("Form", "`x` is not set", "`x` is empty", "`x` is `a.tar.gz`"), rows)


def predefined_table() -> str:
    """Every predefined argument."""
    build, target = Platform("linux", "amd64"), Platform("linux", "arm64", "v8")
    rows = [
        (f"`{name}`", f"`{value}`" if value else "empty", "FROM; a stage once it declares it")
        for name, value in platform_args(build, target, "app").items()
    ]
    proxies = ", ".join(f"`{name}`" for name in scope.PROXY_NAMES)
    rows.append(
        (proxies, "as given", "RUN, without any ARG, in capitals and in small letters; never part of a cache key")
    )
    rows += [(f"`{name}`", "as given", "no variable of any step") for name in sorted(scope.NOT_IN_ENVIRONMENT)]
    return render_table(("Argument", "Value", "Seen by"), rows)


def limit_table() -> str:
    """The limits of a file."""
    rows = [
        ("size of the file", f"{lexer.MAX_FILE_SIZE >> 10} KiB"),
        ("characters of a line", f"{lexer.MAX_LINE_LENGTH}"),
        ("characters of an instruction, its continuations joined", f"{lexer.MAX_INSTRUCTION_LENGTH}"),
        ("instructions", f"{lexer.MAX_INSTRUCTIONS}"),
        ("characters of a word once its variables are replaced", f"{expand.MAX_EXPANDED_LENGTH}"),
        ("nested substitutions", f"{expand.MAX_NESTING}"),
        ("size of the ignore file", f"{ignore.MAX_FILE_SIZE >> 10} KiB"),
        ("patterns of the ignore file", f"{ignore.MAX_PATTERNS}"),
    ]
    return render_table(("What", "At most"), rows)


def rule_table() -> str:
    """Every rule of the linter in one line."""
    rows = [
        (f"[{rule.name}](#{rule.name.lower()})", rule.description, "experimental" if rule.experimental else "")
        for rule in sorted(RULES.values(), key=lambda each: each.name)
    ]
    return render_table(("Rule", "What it asks for", ""), rows)


def rule_sections() -> str:
    """Every rule of the linter with its message, why, and an example of each kind."""
    return "\n".join(_rule_section(rule) for rule in sorted(RULES.values(), key=lambda each: each.name))


def _rule_section(rule: Rule) -> str:
    said = (LINT_CASES / f"{rule.name}-bad" / "expected.txt").read_text(encoding="utf-8").splitlines()[0]
    parts = [
        f"### {rule.name}\n",
        rule.description + (" Experimental: off unless asked for." if rule.experimental else "") + "\n",
        f"```text\n{said}\n```\n",
        rule.advice + "\n",
    ]
    for kind, title in (("bad", "Warned of"), ("good", "Instead")):
        folder = LINT_CASES / f"{rule.name}-{kind}"
        text = (folder / "Dockerfile").read_text(encoding="utf-8").rstrip("\n")
        parts.append(f"{title}:\n\n```dockerfile\n{text}\n```\n")
        if (folder / "dockerignore").exists():
            rules = (folder / "dockerignore").read_text(encoding="utf-8").rstrip("\n")
            parts.append(f"with this `.dockerignore`:\n\n```text\n{rules}\n```\n")
    return "\n".join(parts)


def build_option_table() -> str:
    """Every option of a build."""
    return render_table(("Option", "Values", "Meaning"), option_rows())


def retired_option_table() -> str:
    """Every option of a build that has no effect."""
    return render_table(("Option", "Why it does nothing"), retired_rows())


TABLES: Mapping[str, Callable[[], str]] = {
    "commands": command_sections,
    "instructions": instruction_table,
    "flags": flag_table,
    "mounts": mount_table,
    "mount-keys": mount_key_table,
    "features": feature_table,
    "forms": form_table,
    "predefined": predefined_table,
    "limits": limit_table,
    "rules": rule_table,
    "rule-sections": rule_sections,
    "build-options": build_option_table,
    "retired-build-options": retired_option_table,
}


def fill(page: str) -> str:
    """A page with its tables made anew. Raises KeyError for a table that does not exist."""
    return _TABLE.sub(lambda match: f"{match[1]}\n{TABLES[match['name']]()}\n{match[3]}", page)


def list_tables(page: str) -> list[str]:
    """The tables of a page, by name."""
    return [match["name"] for match in _TABLE.finditer(page)]


if __name__ == "__main__":
    for path in PAGES:
        written = (ROOT / path).read_text(encoding="utf-8")
        (ROOT / path).write_text(fill(written), encoding="utf-8")
