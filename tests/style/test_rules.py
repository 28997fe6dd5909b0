"""Every house rule can fail: a bad sample for each, and a good one beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support import rules

Rule = Callable[[str, str], Iterator[str]]

BAD: list[tuple[Rule, str, str]] = [
    (rules.check_layers, "store/disks.py", "from firebuild.machine import spec"),
    (rules.check_layers, "store/disks.py", "import firebuild.network.cni"),
    (rules.check_layers, "store/disks.py", "def f():\n    from firebuild.cli.main import main"),
    (rules.check_layers, "host/files.py", "from ..config import settings"),
    (rules.check_layers, "emulator/api.py", "from firebuild.vmm import models"),
    (rules.check_layers, "vmm/process.py", "from firebuild.emulator import api"),
    (rules.check_layers, "unknown/x.py", "from firebuild import errors"),
    (rules.check_layers, "errors.py", "from firebuild import names"),
    (rules.check_processes, "store/disks.py", "import subprocess"),
    (rules.check_processes, "emulator/qemu.py", "from subprocess import Popen"),
    (rules.check_shells, "x.py", "import os\nos.system('true')"),
    (rules.check_shells, "x.py", "run('true', shell=True)"),
    (rules.check_shells, "x.py", "run('true', shell=flag)"),
    (rules.check_shells, "x.py", "archive.extractall(path)"),
    (rules.check_prints, "engine/run.py", "print('x')"),
    (rules.check_prints, "engine/run.py", "import sys\nsys.stderr.write('x')"),
    (rules.check_prints, "build/plan.py", "import sys\nsys.exit(1)"),
    (rules.check_paths, "machine/state.py", "path = layout.machines / machine_id"),
    (rules.check_paths, "machine/state.py", "path = self._layout.state / 'x'"),
    (rules.check_paths, "machine/state.py", "path = '/var/lib/firebuild/x'"),
    (rules.check_size, "x.py", "\n" * 601),
    (rules.check_size, "x.py", "def long():\n" + "    pass\n" * 80),
    (rules.check_docstring, "x.py", "import os\n"),
    (rules.check_docstring, "x.py", '# a comment\n"""A docstring on line two."""\n'),
    (rules.check_docstring, "x.py", '"""Short."""\n'),
    (rules.check_handlers, "x.py", "try:\n    f()\nexcept Exception:\n    pass"),
    (rules.check_handlers, "x.py", "try:\n    f()\nexcept:\n    pass"),
    (rules.check_rust, "a/src/lib.rs", "//! Why.\nfn main() {}\n"),
    (rules.check_rust, "a/src/x.rs", "fn main() {}\n"),
    (rules.check_rust, "a/src/x.rs", "//! Why.\n" + "\n" * 600),
]

GOOD: list[tuple[Rule, str, str]] = [
    (rules.check_layers, "cli/main.py", "from firebuild.engine import run\nfrom firebuild import __version__"),
    (rules.check_layers, "store/disks.py", "from firebuild.host import files\nfrom . import blobs\nimport os"),
    (
        rules.check_layers,
        "emulator/api.py",
        "from firebuild.errors import UsageError\nfrom firebuild.emulator import qmp",
    ),
    (rules.check_layers, "layout.py", "from firebuild.names import MachineId"),
    (rules.check_processes, "host/process.py", "import subprocess"),
    (rules.check_shells, "x.py", "run(['true'], shell=False)"),
    (rules.check_prints, "cli/main.py", "print('x')"),
    (rules.check_paths, "machine/state.py", "path = layout.machine(machine_id).spec"),
    (rules.check_paths, "layout.py", "path = '/var/lib/firebuild'"),
    (rules.check_size, "x.py", "def short():\n" + "    pass\n" * 79),
    (rules.check_docstring, "x.py", '#!/usr/bin/env python3\n"""Why this module exists."""\n'),
    (rules.check_handlers, "x.py", "try:\n    f()\nexcept OSError:\n    pass"),
    (rules.check_rust, "a/src/lib.rs", "//! Why.\n#![forbid(unsafe_code)]\n"),
]


@pytest.mark.parametrize(("rule", "path", "source"), BAD)
def test_a_bad_sample_is_found(rule: Rule, path: str, source: str) -> None:
    assert list(rule(source, path))


@pytest.mark.parametrize(("rule", "path", "source"), GOOD)
def test_a_good_sample_passes(rule: Rule, path: str, source: str) -> None:
    assert not list(rule(source, path))


def test_a_forbidden_word_is_found_where_it_stands() -> None:
    text = "fine\nfrom https://" + rules.REGISTRY_HOSTS[0] + "/simple\n"
    assert list(rules.check_words(text, "x.txt", rules.REGISTRY_HOSTS)) == [
        f"x.txt:2: holds {rules.REGISTRY_HOSTS[0]!r}"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# Changes\n## [Unreleased]\n### Added\n- x\n",
        "# Changelog\n### Added\n- x\n",
        "# Changelog\n## [Unreleased]\n### News\n- x\n",
        "# Changelog\n## [Unreleased]\n### Added\n- x\n## 1.0\n",
        "# Changelog\n## [Unreleased]\n### Added\n",
    ],
)
def test_a_misshapen_changelog_is_found(text: str) -> None:
    assert list(rules.check_changelog(text))


def test_a_loose_lock_file_is_found() -> None:
    digest = "0" * 64
    good = f"click==8.1 \\\n    --hash=sha256:{digest} \\\n    --hash=sha256:{digest}\n"
    assert not list(rules.check_lock(good, ["Click"]))
    assert list(rules.check_lock(good, ["Click", "msgspec"]))
    assert list(rules.check_lock(good + "msgspec>=0.19\n", ["click"]))
    assert list(rules.check_lock(good + "msgspec==0.19\n", ["click"]))
