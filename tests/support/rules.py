"""The house rules that a program can check, as pure functions from a source text to findings: tests/style applies them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

MODULE_LINES = 600
FUNCTION_LINES = 80

# From the top of the house to its ground; a module imports from the rows below its own, never from its own row's other rooms.
FLOORS = (
    ("cli",),
    ("engine",),
    ("build",),
    ("machine",),
    ("images", "kernels", "store", "vmm", "guest", "network"),
    ("events",),
    ("dockerfile", "config"),
    ("host",),
    ("layout",),
    ("names",),
    ("errors",),
)
# The emulator is a program of its own: nobody imports it, and it takes no more than this from the house.
EMULATOR_MAY = ("errors", "names", "host")
SHELLS = ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput")
STATE_LITERALS = re.compile(r"^/(var/lib|run)/firebuild(/|$)|^/(proc/self/)?run/netns/fb-")

CHANGE_KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
# Spelled in pieces, so that this file does not hold what it forbids.
REGISTRY_HOSTS = tuple(
    ".".join(pieces)
    for pieces in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("index", "crates", "io"),
        ("static", "crates", "io"),
        ("proxy", "golang", "org"),
        ("registry", "npmjs", "org"),
        ("repo1", "maven", "org"),
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
        ("archive", "ubuntu", "com"),
    )
)


def room_of(path: str) -> str:
    """The room of a module, from its path below src/firebuild: `host/files.py` is in `host`, `errors.py` is `errors`."""
    first = PurePosixPath(path).parts[0]
    return first.removesuffix(".py")


def find_imports(tree: ast.AST, path: str) -> Iterator[tuple[int, str]]:
    """Line and full name of every module or member that a module of the package imports, wherever in it the import stands."""
    package = ["firebuild", *PurePosixPath(path).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)


def check_layers(source: str, path: str) -> Iterator[str]:
    """Imports run downwards only."""
    room = room_of(path)
    for line, name in find_imports(ast.parse(source), path):
        parts = name.split(".")
        if parts[0] != "firebuild" or len(parts) < 2:
            continue
        target = parts[1]
        if target in (room, "__version__") or room in ("__init__", "__main__"):
            continue
        if not _may_import(room, target):
            yield f"{path}:{line}: `{room}` imports `{target}`"


def _may_import(room: str, target: str) -> bool:
    if room == "emulator":
        return target in EMULATOR_MAY
    floors = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    return room in floors and target in floors and floors[room] < floors[target]


def check_processes(source: str, path: str) -> Iterator[str]:
    """Only host/ imports subprocess, and nobody uses a shell."""
    tree = ast.parse(source)
    for line, name in find_imports(tree, path):
        if name.split(".")[0] in ("subprocess", "multiprocessing", "pty") and room_of(path) != "host":
            yield f"{path}:{line}: `{name}` outside host/"
    yield from check_shells(source, path)


def check_shells(source: str, path: str) -> Iterator[str]:
    """No shell strings, and no archive unpacked by the host (both are escapes waiting to happen)."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in SHELLS:
            yield f"{path}:{node.lineno}: {name}"
        if name.split(".")[-1] in ("extractall", "unpack_archive"):
            yield f"{path}:{node.lineno}: {name}: the host unpacks nothing"
        if name.split(".")[-1] not in ("run", "Popen", "call", "check_call", "check_output"):
            continue  # a Dockerfile's instruction, too, may have a `shell`
        for keyword in node.keywords:
            if keyword.arg == "shell" and not (
                isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            ):
                yield f"{path}:{node.lineno}: shell=True"


def check_prints(source: str, path: str) -> Iterator[str]:
    """Only cli prints, and of the emulator, a program of its own, its main and its log; nobody else exits."""
    if room_of(path) == "cli" or path in ("__main__.py", "emulator/main.py", "emulator/log.py"):
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.exit", "click.echo", "exit", "quit"):
            yield f"{path}:{node.lineno}: {ast.unparse(node.func)} outside cli"
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr"):
            yield f"{path}:{node.lineno}: {ast.unparse(node)} outside cli"


def check_paths(source: str, path: str) -> Iterator[str]:
    """Only layout.py joins state paths: no `layout.x / "y"` and no literal state path elsewhere."""
    if path == "layout.py":
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and STATE_LITERALS.match(node.value):
            yield f"{path}:{node.lineno}: the path {node.value!r} belongs into layout.py"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.left, ast.Attribute):
            owner = ast.unparse(node.left.value).split(".")[-1].split("(")[0].lstrip("_")
            if owner in ("layout", "machine_layout"):
                yield f"{path}:{node.lineno}: `{ast.unparse(node)}` joins a state path: layout.py does that"


def check_size(source: str, path: str) -> Iterator[str]:
    """Modules and functions are small."""
    lines = source.count("\n")
    if lines > MODULE_LINES:
        yield f"{path}: {lines} lines, at most {MODULE_LINES}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                yield f"{path}:{node.lineno}: `{node.name}` has {length} lines, at most {FUNCTION_LINES}"


def check_docstring(source: str, path: str) -> Iterator[str]:
    """A module begins with a docstring whose first line says why it exists. A program's `#!` line may stand before it."""
    body = ast.parse(source).body
    text = ast.get_docstring(ast.parse(source))
    start = 2 if source.startswith("#!") else 1
    if not text or body[0].lineno != start or len(text.splitlines()[0]) < 10:
        yield f"{path}: no docstring on its first line"


def check_handlers(source: str, path: str) -> Iterator[str]:
    """No handler swallows everything in silence."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
        if broad and all(isinstance(statement, ast.Pass | ast.Continue) for statement in node.body):
            yield f"{path}:{node.lineno}: swallows every error"


def check_rust(source: str, path: str) -> Iterator[str]:
    """A Rust module is small and begins with `//!`; a crate's root forbids or denies unsafe code."""
    lines = source.count("\n")
    if lines > MODULE_LINES:
        yield f"{path}: {lines} lines, at most {MODULE_LINES}"
    if not source.startswith("//! "):
        yield f"{path}: does not begin with `//! ` and why it exists"
    if path.endswith(("src/lib.rs", "src/main.rs")) and not re.search(r"#!\[(forbid|deny)\(unsafe_code\)\]", source):
        yield f"{path}: does not forbid unsafe code"


def check_words(text: str, path: str, forbidden: Sequence[str]) -> Iterator[str]:
    """None of the forbidden words stands in a file."""
    for number, line in enumerate(text.splitlines(), 1):
        for word in forbidden:
            if word in line:
                yield f"{path}:{number}: holds {word!r}"


def check_changelog(text: str) -> Iterator[str]:
    """The changelog has the shape of Keep a Changelog 1.1: `# Changelog`, `## [Unreleased]` first, known kinds of change."""
    lines = text.splitlines()
    if not lines or lines[0] != "# Changelog":
        yield "CHANGELOG.md: the first line is not `# Changelog`"
    releases = [line for line in lines if line.startswith("## ")]
    if not releases or releases[0] != "## [Unreleased]":
        yield "CHANGELOG.md: the first section is not `## [Unreleased]`"
    for line in releases[1:]:
        if not re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", line):
            yield f"CHANGELOG.md: `{line}` is not `## [x.y.z] - YYYY-MM-DD`"
    for line in lines:
        if line.startswith("### ") and line[4:] not in CHANGE_KINDS:
            yield f"CHANGELOG.md: `{line}` is none of {', '.join(CHANGE_KINDS)}"
    if not any(line.startswith("- ") for line in lines):
        yield "CHANGELOG.md: no entry"


def check_lock(lock: str, required: Sequence[str]) -> Iterator[str]:
    """The lock file pins every required package, exactly, by hash, and names no place to fetch from."""
    pins = re.findall(
        r"^([A-Za-z0-9._-]+)==(\S+)(?: ; [^\\]+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n?)+)",
        lock,
        re.MULTILINE,
    )
    pinned = {_canonical(name) for name, _, _ in pins}
    entries = [line for line in lock.splitlines() if line and not line.startswith((" ", "#"))]
    if len(entries) != len(pins):
        yield f"requirements/dev.txt: {len(entries) - len(pins)} entries are not `name==version` with hashes"
    for name in required:
        if _canonical(name) not in pinned:
            yield f"requirements/dev.txt: does not pin `{name}`"


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def find_commands(text: str, program: str) -> set[str]:
    """The commands of a program that a text shows: `./dev demo` gives `demo`."""
    return set(re.findall(rf"{re.escape(program)} ([a-z][a-z-]*)", text))
