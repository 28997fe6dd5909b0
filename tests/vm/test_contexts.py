"""Remote sources in a real build machine: what is fetched on the host stands in the image as Docker would leave it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from tests.support.cli import BUILD_TIMEOUT_S, Cli
from tests.support.web import git_backend, make_repository, serve_web
from tests.vm.conftest import BASE

TAG = "tests/contexts:1"
LIST = "stat -c '%n %F %a %u:%g %Y'"


def make_archive() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:xz", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, mode, owner, content in (
            ("bin", tarfile.DIRTYPE, 0o1775, 5, b""), ("bin/tool", tarfile.REGTYPE, 0o4755, 7, b"#!/bin/sh\necho tool\n"),
            ("bin/same", tarfile.LNKTYPE, 0o4755, 7, b""), ("null", tarfile.CHRTYPE, 0o666, 0, b""),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid, info.gid, info.mtime = kind, mode, owner, owner, 1500000000
            info.size, info.linkname, info.devmajor, info.devminor = len(content), "bin/tool", 1, 3
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def test_everything_that_add_and_a_repository_bring(cli: Cli, tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "git" / "app")
    with serve_web() as web:
        web.pages["/*"] = git_backend(tmp_path / "git")
        web.pages["/files/data.txt"] = lambda handler: handler.send(
            200, b"from afar", Last_Modified="Sat, 04 Nov 2023 21:17:22 GMT"
        )
        (tmp_path / "git" / "app.git").symlink_to(repository.folder / ".git")
        repository.commit({"source.txt": "first", "run.sh": "+x#!/bin/sh\n"})
        repository.git("tag", "v1")
        (repository.folder / "tool.tar.xz").write_bytes(make_archive())
        repository.commit(
            {
                "image/Dockerfile": f"FROM {BASE}\n"
                "COPY app.txt /app/\n"
                "ADD tool.tar.xz /opt\n"
                f"ADD {web.url}/files/data.txt /data/\n"
                f"ADD --chown=9 {web.url}/app.git#v1 /src/\n"
                f"RUN {LIST} /app/app.txt /opt/bin /opt/bin/tool /opt/null /data/data.txt /src/run.sh && "
                "cat /data/data.txt /src/source.txt && /opt/bin/same && test /opt/bin/same -ef /opt/bin/tool\n",
                "image/app.txt": "app",
            }
        )
        (repository.folder / "tool.tar.xz").rename(repository.folder / "image" / "tool.tar.xz")
        repository.commit({})
        words = (
            "rootfs",
            "--dockerfile",
            f"git+{web.url}/app.git:/image/Dockerfile#main",
            "--progress",
            "plain",
            "-t",
            TAG,
        )
        done = cli.run(*words, timeout_s=BUILD_TIMEOUT_S)
        assert done.status == 0, done.describe()
        said = done.stderr
        for line in (
            "/app/app.txt regular file 644 0:0 1767323045", "/opt/bin directory 1775 5:5 1500000000",
            "/opt/bin/tool regular file 4755 7:7 1500000000", "/opt/null character special file 666 0:0 1500000000",
            "/data/data.txt regular file 600 0:0 1699132642", "/src/run.sh regular file 755 9:9 1767323045",
            "from afar", "first", "tool",
        ):  # fmt: skip
            assert line in said, said
        again = cli.run(*words, timeout_s=BUILD_TIMEOUT_S).stderr
        assert "5 steps, 5 cached" in again and "not needed" in again
    assert not list((cli.state / "scratch").iterdir())
