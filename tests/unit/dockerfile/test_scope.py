"""ARG and ENV scoping as a table: for each Dockerfile, what a RUN sees and what the image's config keeps."""

from __future__ import annotations

import msgspec
import pytest

from firebuild.dockerfile.expansion import expand_instruction
from firebuild.dockerfile.nodes import Run
from firebuild.dockerfile.scope import (
    GlobalScope,
    Platform,
    Scope,
    list_unused_build_args,
    platform_args,
    proxy_environment,
)
from firebuild.dockerfile.stages import Dockerfile, parse_dockerfile
from firebuild.errors import DockerfileError

PREDEFINED = platform_args(Platform("linux", "amd64"), Platform("linux", "arm64", "v8"), "final")


class Case(msgspec.Struct):
    """`run` and `env`: of the last stage; `base`: its base expanded."""

    text: str
    build_args: dict[str, str] = {}
    image_env: dict[str, str] = {}
    run: dict[str, str] = {}
    env: dict[str, str] = {}
    base: str = "a"


CASES = {
    "default": Case("FROM a\nARG x=1\nRUN x", run={"x": "1"}),
    "no default, no value": Case("FROM a\nARG x\nRUN x"),
    "build argument wins over default": Case("FROM a\nARG x=1\nRUN x", {"x": "2"}, run={"x": "2"}),
    "build argument is not expanded": Case("FROM a\nARG y=1\nARG x\nRUN x", {"x": "$y"}, run={"y": "1", "x": "$y"}),
    "empty build argument counts": Case("FROM a\nARG x=1\nRUN x", {"x": ""}, run={"x": ""}),
    "undeclared build argument is not seen": Case("FROM a\nENV y=$x\nRUN x", {"x": "1"}, run={"y": ""}, env={"y": ""}),
    "global in FROM": Case("ARG v=12\nFROM a:$v\nRUN x", base="a:12"),
    "global in FROM from build argument": Case("ARG v=12\nFROM a:${v}\nRUN x", {"v": "13"}, base="a:13"),
    "global with a default from a global": Case("ARG v=1\nARG i=a:$v\nFROM $i\nRUN x", base="a:1"),
    "global is not in the stage": Case(
        "ARG v=1\nFROM a\nENV y=${v:-none}\nRUN x", run={"y": "none"}, env={"y": "none"}
    ),
    "global declared again": Case("ARG v=1\nFROM a\nARG v\nRUN x", run={"v": "1"}),
    "global declared again with another default": Case("ARG v=1\nFROM a\nARG v=2\nRUN x", run={"v": "2"}),
    "default from an earlier argument": Case(
        "FROM a\nARG x=1 y=$x z=${y}2\nRUN x", run={"x": "1", "y": "1", "z": "12"}
    ),
    "default from ENV": Case("FROM a\nENV e=1\nARG x=$e\nRUN x", run={"e": "1", "x": "1"}, env={"e": "1"}),
    "quotes of a default go": Case("FROM a\nARG x=\"a b\" y='$x'\nRUN x", run={"x": "a b", "y": "$x"}),
    "global quotes go": Case('ARG i="a"\nFROM $i\nRUN x'),
    "ENV behind ARG wins": Case("FROM a\nARG x=1\nENV x=2\nRUN x", {"x": "3"}, run={"x": "2"}, env={"x": "2"}),
    "ARG behind ENV hides it": Case("FROM a\nENV x=2\nARG x=1\nRUN x", run={"x": "1"}, env={"x": "2"}),
    "ARG without value leaves ENV": Case("FROM a\nENV x=2\nARG x\nRUN x", run={"x": "2"}, env={"x": "2"}),
    "ARG hides the image's ENV": Case("FROM a\nARG x=1\nRUN x", image_env={"x": "0"}, run={"x": "1"}, env={"x": "0"}),
    "ENV from ARG with a fallback": Case("FROM a\nARG v\nENV v=${v:-1.0}\nRUN x", run={"v": "1.0"}, env={"v": "1.0"}),
    "ENV pairs see the environment before": Case(
        "FROM a\nENV abc=hello\nENV abc=bye def=$abc\nENV ghi=$abc\nRUN x",
        run={"abc": "bye", "def": "hello", "ghi": "bye"},
        env={"abc": "bye", "def": "hello", "ghi": "bye"},
    ),
    "ENV expands names too": Case(
        "FROM a\nENV k=x\nENV $k=1\nRUN x", run={"k": "x", "x": "1"}, env={"k": "x", "x": "1"}
    ),
    "ENV from the image": Case(
        "FROM a\nENV PATH=/x:$PATH\nRUN x", {}, {"PATH": "/bin"}, {"PATH": "/x:/bin"}, {"PATH": "/x:/bin"}
    ),
    "platform argument in FROM": Case("FROM --platform=$BUILDPLATFORM a:$TARGETARCH\nRUN x", base="a:arm64"),
    "platform argument must be declared": Case("FROM a\nENV y=$TARGETARCH.\nRUN x", run={"y": "."}, env={"y": "."}),
    "platform arguments declared": Case(
        "FROM a\nARG TARGETPLATFORM TARGETVARIANT BUILDOS TARGETSTAGE\nRUN x",
        run={"TARGETPLATFORM": "linux/arm64/v8", "TARGETVARIANT": "v8", "BUILDOS": "linux", "TARGETSTAGE": "final"},
    ),
    "platform argument overridden": Case(
        "FROM a:$TARGETARCH\nARG TARGETARCH\nRUN x", {"TARGETARCH": "odd"}, run={"TARGETARCH": "odd"}, base="a:odd"
    ),
    "platform argument with a default in the stage": Case(
        "FROM a\nARG TARGETARCH=mine\nRUN x", run={"TARGETARCH": "mine"}
    ),
    "stages do not share": Case("FROM b AS one\nARG x=1\nENV e=1\nFROM a\nRUN x"),
    "a child stage inherits both": Case(
        "FROM a AS one\nARG x=1\nENV e=1\nFROM one\nRUN x", run={"x": "1", "e": "1"}, env={"e": "1"}, base="one"
    ),
    "a child stage changes neither": Case(
        "FROM a AS one\nARG x=1\nFROM one AS two\nARG x=2\nFROM one\nRUN x", run={"x": "1"}, base="one"
    ),
    "escape directive": Case("# escape=`\nFROM a\nARG x=C:\\dir `\n y=`$x\nRUN x", run={"x": "C:\\dir", "y": "$x"}),
    "proxy is not a variable": Case(
        "FROM a\nENV p=$HTTP_PROXY\nRUN x", {"HTTP_PROXY": "http://p"}, run={"p": ""}, env={"p": ""}
    ),
    "proxy declared is one": Case(
        "FROM a\nARG HTTP_PROXY\nRUN x", {"HTTP_PROXY": "http://p"}, run={"HTTP_PROXY": "http://p"}
    ),
    "argument that steers BuildKit stays out": Case("FROM a\nARG BUILDKIT_SBOM_SCAN_STAGE=true\nRUN x"),
}


def walk(parsed: Dockerfile, case: Case) -> tuple[str, Scope]:
    """Plans the stages as a builder would: the last stage's base and its scope."""
    global_scope = GlobalScope(
        parsed.global_args, build_args=case.build_args, predefined=PREDEFINED, escape=parsed.escape
    )
    scopes: list[Scope] = []
    base = ""
    for stage in parsed.stages:
        base = global_scope.expand(stage.base).text
        parent = parsed.find_base(stage, base)
        scope = Scope(global_scope, case.image_env) if parent is None else scopes[parent.index].fork()
        for instruction in stage.instructions:
            expand_instruction(instruction, scope)
        scopes.append(scope)
    return base, scopes[-1]


@pytest.mark.parametrize("name", CASES)
def test_scoping(name: str) -> None:
    case = CASES[name]
    base, scope = walk(parse_dockerfile(case.text.encode()), case)
    assert (dict(scope.run_environment), dict(scope.environment), base) == (
        case.image_env | case.run,
        case.env,
        case.base,
    )


def test_history_arguments_keep_their_first_place_and_their_value_in_force() -> None:
    case = Case("FROM a\nARG x=1\nARG y\nENV x=2\nARG z=3 x\nRUN x")
    _, scope = walk(parse_dockerfile(case.text.encode()), case)
    assert scope.history_args() == ("x=2", "y=", "z=3")
    assert scope.declared == ("x", "y", "z")


def test_history_arguments_keep_their_first_place_through_stages() -> None:
    case = Case("FROM a AS one\nARG x=1\nARG y=2\nFROM one\nARG z=3\nARG x=4\nRUN x")
    _, scope = walk(parse_dockerfile(case.text.encode()), case)
    assert scope.history_args() == ("x=4", "y=2", "z=3")
    assert scope.is_declared("y") and not scope.is_declared("HTTP_PROXY")


def test_fork_is_independent() -> None:
    scope = Scope(GlobalScope((), build_args={}, predefined={}), {"a": "1"})
    child = scope.fork()
    child.set_env([("a", "2")])
    assert (scope.environment["a"], child.environment["a"]) == ("1", "2")


def test_display_keeps_quotes_and_unknown_names() -> None:
    scope = Scope(GlobalScope((), build_args={}, predefined={}), {"a": "1"})
    assert scope.expand_for_display("RUN echo \"$a\" '$a' $b") == "RUN echo \"1\" '$a' $b"


def test_growing_environment_is_bounded() -> None:
    text = "FROM a\nENV a=" + "x" * 1024 + "\n" + "ENV a=$a$a\n" * 30
    parsed = parse_dockerfile(text.encode())
    with pytest.raises(DockerfileError, match="expands to more than 65536"):
        walk(parsed, Case(text))


def test_work_of_all_instructions_together_is_bounded() -> None:
    text = "FROM a\nENV a=" + "x" * 60_000 + "\n" + "LABEL l=${a%%*y*y}\n" * 900
    with pytest.raises(DockerfileError, match="too much work"):
        walk(parse_dockerfile(text.encode()), Case(text))


def test_proxy_environment() -> None:
    given = {"http_proxy": "http://p", "No_Proxy": "x", "HTTPS_PROXY": "", "other": "y"}
    assert proxy_environment(given) == {
        "HTTP_PROXY": "http://p",
        "NO_PROXY": "x",
        "http_proxy": "http://p",
        "no_proxy": "x",
    }


def test_unused_build_args() -> None:
    given = dict.fromkeys(
        ["x", "y", "HTTP_PROXY", "no_proxy", "TARGETARCH", "BUILDKIT_SYNTAX", "SOURCE_DATE_EPOCH"], "1"
    )
    assert list_unused_build_args(given, ["y"]) == ["x"]


def test_platform_text() -> None:
    assert str(Platform("linux", "arm", "v7")) == "linux/arm/v7"
    assert PREDEFINED["BUILDPLATFORM"] == "linux/amd64"
    assert platform_args(Platform("linux", "amd64"), Platform("linux", "amd64"), "")["TARGETSTAGE"] == "default"


def test_run_command_is_left_to_the_shell() -> None:
    parsed = parse_dockerfile(b"FROM a\nENV x=1\nRUN echo $x\n")
    scope = Scope(GlobalScope((), build_args={}, predefined={}), {})
    instructions = [expand_instruction(each, scope).instruction for each in parsed.stages[0].instructions]
    assert isinstance(instructions[1], Run)
    assert instructions[1].command.arguments == ("echo $x",)
