"""RUN --mount on a real guest: a cache that lasts, a secret that leaves no trace, binds and memory."""

from __future__ import annotations

from pathlib import Path

from tests.support.cli import BUILD_TIMEOUT_S, Cli
from tests.vm.conftest import BASE

TAG = "tests/mounts:1"
CANARY = "canary-5d1f0c7b9e"

DOCKERFILE = f"""
FROM {BASE} AS source
RUN mkdir /s && echo data >/s/f
FROM {BASE}
ARG ROUND
RUN --mount=type=cache,target=/c n=$(cat /c/n 2>/dev/null || echo 0) && echo $((n + 1)) | tee /c/n >/count.$ROUND
RUN --mount=type=secret,id=token,required=true wc -c </run/secrets/token >/length
RUN --mount=type=secret,id=token,env=TOKEN echo ${{#TOKEN}} >>/length
RUN --mount=type=bind,from=source,source=/s,target=/m cat /m/f >/got && ! touch /m/no 2>/dev/null
RUN --mount=type=tmpfs,target=/t mountpoint -q /t && echo x >/t/x
"""


def test_caches_secrets_binds_and_memory(cli: Cli, context: Path, tmp_path: Path) -> None:
    (context / "Dockerfile").write_text(DOCKERFILE)
    secret = tmp_path / "token"
    secret.write_text(CANARY)

    def build(number: int) -> str:
        arguments = ["--tag", TAG, "--build-arg", f"ROUND={number}", "--secret", f"id=token,src={secret}"]
        result = cli.run("rootfs", context, *arguments, timeout_s=BUILD_TIMEOUT_S)
        assert result.status == 0, result.describe()
        return result.stdout + result.stderr

    output = build(1) + build(2)
    assert CANARY not in output
    show = "cat /count.2 /length /got; ls -d /c /m /t /run/secrets /count.1"
    result = cli.run("run", "--rm", "--name", "mounts1", "--network", "none", "--from", TAG, "--", "sh", "-c", show)
    # The mount points are gone, and the second build's layer came from the second build alone.
    assert result.stdout.split() == ["2", str(len(CANARY)), str(len(CANARY)), "data"], result.describe()

    holders = [path for path in cli.state.rglob("*") if path.is_file() and CANARY.encode() in read_sparse(path)]
    assert holders == []
    missing = cli.refused("rootfs", context, "--tag", TAG, "--build-arg", "ROUND=3", timeout_s=BUILD_TIMEOUT_S)
    assert "token" in missing.stderr


def read_sparse(path: Path) -> bytes:
    """A file's data without its holes: disks are mostly holes."""
    import os

    parts = []
    with open(path, "rb", buffering=0) as file:
        size, offset = os.fstat(file.fileno()).st_size, 0
        while offset < size:
            try:
                start = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            os.lseek(file.fileno(), start, os.SEEK_SET)
            parts.append(os.read(file.fileno(), end - start))
            offset = end
    return b"".join(parts)
