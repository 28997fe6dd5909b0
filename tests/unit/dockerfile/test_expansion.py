"""Which instruction expands what, which names it reports, and where its faults are shown."""

from __future__ import annotations

import pytest

from firebuild.dockerfile import nodes
from firebuild.dockerfile.expansion import Expanded, expand_instruction
from firebuild.dockerfile.mounts import Mount
from firebuild.dockerfile.programs import RunProgram, plan_run
from firebuild.dockerfile.scope import GlobalScope, Scope
from firebuild.dockerfile.stages import parse_dockerfile
from firebuild.dockerfile.words import Pair
from firebuild.errors import DockerfileError

ENVIRONMENT = {"x": "1", "user": "app", "p": "80 443/udp", "dir": "/d", "path": "a b"}


def expanded(line: str, directive: str = "") -> Expanded:
    parsed = parse_dockerfile(f"{directive}FROM a\n{line}\n".encode())
    scope = Scope(GlobalScope((), build_args={}, predefined={}, escape=parsed.escape), ENVIRONMENT)
    return expand_instruction(parsed.stages[0].instructions[0], scope)


def test_copy() -> None:
    result = expanded("COPY --chown=$user:${g:-0} --chmod=75$x --exclude=$x $path '$x' ${NO} $dir/")
    copy = result.instruction
    assert isinstance(copy, nodes.Copy)
    assert copy.sources == ("a b", "$x", "")
    assert (copy.destination, copy.chown, copy.chmod, copy.exclude) == ("/d/", "app:0", "751", ("$x",))
    assert result.used == {"user", "x", "path", "dir"}
    assert result.unset == {"g", "NO"}


def test_add() -> None:
    add = expanded("ADD --checksum=sha256:$x https://$user/x /").instruction
    assert isinstance(add, nodes.Add)
    assert (add.checksum, add.sources) == ("sha256:1", ("https://app/x",))


def test_copy_heredocs() -> None:
    copy = expanded("COPY <<a.txt <<'b.txt' /\n\"$x\" 'y' \\$x \\n\na.txt\n$x\nb.txt").instruction
    assert isinstance(copy, nodes.Copy)
    assert [file.content for file in copy.inline_files] == ["\"1\" 'y' $x n\n", "$x\n"]


def test_copy_heredoc_ignores_the_escape_directive() -> None:
    copy = expanded("COPY <<a /\n`$x \\$x\na", "# escape=`\n").instruction
    assert isinstance(copy, nodes.Copy)
    assert copy.inline_files[0].content == "`1 $x\n"


def test_env_and_label() -> None:
    env = expanded("ENV a=$x b='$x' c=\"$x y\"").instruction
    assert isinstance(env, nodes.Env)
    assert [(pair.name, pair.value) for pair in env.pairs] == [("a", "1"), ("b", "$x"), ("c", "1 y")]
    label = expanded("LABEL $user.v $x y").instruction
    assert isinstance(label, nodes.Label)
    assert label.pairs == (Pair("app.v", "1 y", legacy=True),)


def test_expose_splits_words_and_unrolls_ranges() -> None:
    expose = expanded("EXPOSE $p 9000-9002 1.2.3.4:8080:8081 80/TCP").instruction
    assert isinstance(expose, nodes.Expose)
    assert expose.ports == ("80/tcp", "443/udp", "8081/tcp", "9000/tcp", "9001/tcp", "9002/tcp")


def test_small_ones() -> None:
    workdir = expanded("WORKDIR $dir/x").instruction
    user = expanded("USER ${user}:$user").instruction
    volume = expanded('VOLUME ["$dir", "/x y"]').instruction
    signal = expanded("STOPSIGNAL SIG${s:-USR1}").instruction
    assert isinstance(workdir, nodes.Workdir) and workdir.path == "/d/x"
    assert isinstance(user, nodes.User) and user.user == "app:app"
    assert isinstance(volume, nodes.Volume) and volume.paths == ("/d", "/x y")
    assert isinstance(signal, nodes.StopSignal) and signal.signal == "SIGUSR1"


def test_run_mounts() -> None:
    result = expanded("RUN --mount=type=${t:-cache},target=$dir,id=$user,uid=$x --mount=target=/y ls $x")
    run = result.instruction
    assert isinstance(run, nodes.Run)
    assert run.resolved_mounts == (
        Mount(type="cache", target="/d", id="app", uid=1),
        Mount(type="bind", target="/y", read_only=True),
    )
    assert result.used == {"dir", "user", "x"}
    assert result.unset == {"t"}


def test_run_mount_is_read_with_the_escape_of_the_file() -> None:
    run = expanded("RUN --mount=type=cache,target=C:\\dir ls", "# escape=`\n").instruction
    assert isinstance(run, nodes.Run)
    assert run.resolved_mounts[0].target == "C:\\dir"


@pytest.mark.parametrize(
    "line", ["CMD $x", 'ENTRYPOINT ["$x"]', "HEALTHCHECK CMD $x", 'SHELL ["$x"]', "ONBUILD ENV a=$x"]
)
def test_left_as_written(line: str) -> None:
    result = expanded(line)
    assert "$x" in str(result.instruction)
    assert not result.used


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("EXPOSE 80/icmp", "unknown protocol"),
        ("EXPOSE 70000", "not a port"),
        ("EXPOSE 9-8", "ends before it starts"),
        ("EXPOSE 1-2:3-5", "different lengths"),
        ("EXPOSE 300.1.1.1:80:80", "invalid address"),
        ("EXPOSE /tcp", "not a port"),
        ("STOPSIGNAL SIGNOPE", "not a signal"),
        ("STOPSIGNAL 0", "not a signal"),
        ("STOPSIGNAL RTMAX-40", "not a signal"),
        ("VOLUME $NO", "empty path"),
        ("RUN --mount=type=$x,target=/x ls", "unknown mount type"),
        ("USER ${NO:?who}", "`NO` is not set: who"),
        ('COPY "a b /x', "not closed"),
    ],
)
def test_faults(line: str, message: str) -> None:
    with pytest.raises(DockerfileError, match=message):
        expanded(line)


def test_fault_gets_its_place() -> None:
    parsed = parse_dockerfile(b"FROM a\nRUN true && \\\n  false\nRUN \\\n  --mount=type=$x ls\n", "dir/Dockerfile")
    scope = Scope(GlobalScope((), build_args={}, predefined={}), {"x": "no"})
    instruction = parsed.stages[0].instructions[1]
    with pytest.raises(DockerfileError) as caught:
        expand_instruction(instruction, scope)
    located = parsed.locate(caught.value, instruction.location)
    assert located.message == "dir/Dockerfile:5:3: unknown mount type `no`"
    assert located.details is not None
    assert "5 | >>>   --mount=type=$x ls" in located.details
    assert parsed.locate(located, instruction.location) is located


def run_of(text: str) -> nodes.Run:
    instruction = parse_dockerfile(f"FROM a\n{text}\n".encode()).stages[0].instructions[0]
    assert isinstance(instruction, nodes.Run)
    return instruction


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("RUN a && b", RunProgram(("/bin/sh", "-c", "a && b"))),
        ('RUN ["a", "b c"]', RunProgram(("a", "b c"))),
        ("RUN <<EOF\nset -e\nx\nEOF", RunProgram(("/bin/sh", "-c", "set -e\nx\n"))),
        ("RUN <<-EOF\n\tx\n\tEOF", RunProgram(("/bin/sh", "-c", "x\n"))),
        (
            "RUN <<EOF\n#!/usr/bin/env python3\nprint()\nEOF",
            RunProgram(("/bin/sh", "-c", "/dev/pipes/EOF"), "/dev/pipes/EOF", "#!/usr/bin/env python3\nprint()\n"),
        ),
        ("RUN <<-A cat 3<<B\n\ta\nA\nb\nB", RunProgram(("/bin/sh", "-c", "<<-A cat 3<<B\n\ta\nA\nb\nB"))),
    ],
)
def test_program_of_a_run(text: str, program: RunProgram) -> None:
    assert plan_run(run_of(text)) == program


def test_program_with_another_shell() -> None:
    assert plan_run(run_of("RUN x"), ("/bin/bash", "-ec")) == RunProgram(("/bin/bash", "-ec", "x"))
