"""Cases: what COPY and ADD take, where it goes, and as whose."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile

from tests.support.differential.case import BASE, CONTEXT_MTIME_S, Case, File, Folder, HardLink, Item, Link, Older

TREE: dict[str, Item] = {
    "tree/a": "a\n",
    "tree/.hidden": "h\n",
    "tree/sub/b": File(b"b\n", 0o640),
    "tree/sub/run.sh": File(b"#!/bin/sh\n", 0o755),
    "tree/empty": Folder(0o700),
    "tree/link": Link("sub/b"),
    "tree/dangling": Link("/no/where"),
    "tree/folder-link": Link("sub"),
}


def _tar() -> bytes:
    """An archive with owners, modes, links and a hard link; its entries are in no particular order."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, mode, owner, content, target in (
            ("packed/sub/file", tarfile.REGTYPE, 0o4755, (7, 8), b"packed\n", ""),
            ("packed", tarfile.DIRTYPE, 0o750, (5, 6), b"", ""),
            ("packed/again", tarfile.LNKTYPE, 0o644, (0, 0), b"", "packed/sub/file"),
            ("packed/link", tarfile.SYMTYPE, 0o777, (1, 1), b"", "/etc/motd"),
            ("packed/named", tarfile.REGTYPE, 0o600, (1000, 1001), b"n\n", ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.size, info.linkname = kind, mode, len(content), target
            info.uid, info.gid = owner
            info.mtime = CONTEXT_MTIME_S + 60
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


TAR = _tar()
PARENTS = (Older(r"\(directory\) mode: Docker '0755'", (28, 1), "folders that are made get 0755"),)


def _copy(name: str, lines: str, files: dict[str, Item] | None = None, **rest: object) -> Case:
    return Case(name, f"FROM {BASE}\n{lines}\n", TREE if files is None else files, **rest)  # type: ignore[arg-type]


CASES = (
    _copy("copy-file-to-a-new-name", "COPY tree/a /new"),
    _copy("copy-file-into-a-folder-that-is-there", "COPY tree/a /srv"),
    _copy("copy-file-with-a-slash-makes-the-folder", "COPY tree/a /one/two/"),
    _copy("copy-file-makes-parents", "COPY tree/a /one/two/three"),
    _copy("copy-file-to-dot", "WORKDIR /w\nCOPY tree/a ."),
    _copy("copy-file-to-dot-slash-below", "WORKDIR /w\nCOPY tree/a ./x/"),
    _copy("copy-file-to-dotdot", "WORKDIR /w/x\nCOPY tree/a .."),
    _copy("copy-file-over-a-file", "COPY tree/a /etc/motd"),
    _copy("copy-folder-is-its-content", "COPY tree /dest"),
    _copy("copy-folder-with-a-slash", "COPY tree/ /dest/"),
    _copy("copy-folder-merges", "COPY tree /opt\nCOPY tree/sub /opt/deep"),
    _copy("copy-folder-keeps-what-only-the-destination-has", "COPY tree /srv"),
    _copy("copy-folder-keeps-the-destinations-own-mode", "RUN chmod 701 /srv && chown 5:6 /srv\nCOPY tree/sub /srv"),
    _copy(
        "copy-folder-changes-modes-of-folders-below", "RUN mkdir -m 777 /d /d/empty && chown 9 /d/empty\nCOPY tree /d"
    ),
    _copy("copy-folder-to-the-root", "COPY tree /"),
    _copy("copy-everything", "COPY . /all"),
    _copy("copy-several-files", "COPY tree/a tree/sub/b /many/"),
    _copy("copy-several-folders", "COPY tree/sub tree/empty /many/"),
    _copy("copy-glob", "COPY glob/* /glob/", {"glob/a": "a", "glob/.b": "b", "glob/link": Link("d"), "glob/d/e": "e"}),
    _copy("copy-glob-through-a-link", "COPY tree/folder-l*/b tree/a /glob/"),
    _copy("copy-glob-takes-dotfiles", "COPY tree/.h* tree/[ae]* /glob/"),
    _copy("copy-glob-in-the-middle", "COPY t*/s*/b /glob/"),
    _copy("copy-glob-of-one-folder-is-its-content", "COPY tree/su* /glob/"),
    _copy(
        "copy-glob-classes",
        "COPY n[0-2].t?t [^n]*.txt /glob/",
        {"n1.txt": "1", "n2.txt": "2", "n3.txt": "3", "x.txt": "x"},
    ),
    _copy(
        "copy-glob-escaped", "COPY n\\[1\\].txt /glob/\nCOPY st\\*r /glob/", {"n[1].txt": "1", "st*r": "s", "star": "n"}
    ),
    _copy("copy-link-named-is-followed", "COPY tree/link /followed"),
    _copy("copy-link-to-folder-named-is-followed", "COPY tree/folder-link /followed"),
    _copy("copy-links-inside-are-kept", "COPY tree /links"),
    _copy("copy-through-link-in-the-source", "COPY tree/folder-link/b /through"),
    _copy("copy-to-a-linked-folder", "COPY tree/a /lib/\nCOPY tree/sub /lib"),
    _copy("copy-below-a-linked-folder", "COPY tree/a /lib/new/x\nCOPY tree/sub /usr/lib64/sub"),
    _copy("copy-below-an-absolute-link", "COPY tree/a /absolute/a"),
    _copy("copy-below-a-link-beyond-the-root", "COPY tree/a /up/a"),
    _copy("copy-below-a-chain-of-links", "COPY tree/a /chain1/a"),
    _copy("copy-below-a-dangling-link", "COPY tree/a /dangling/"),
    _copy("copy-file-onto-a-dangling-link", "COPY tree/a /dangling"),
    _copy("copy-file-onto-a-link-to-a-file", "COPY tree/a /etc/link-to-file"),
    _copy("copy-folder-entry-replaces-a-link", "RUN mkdir /d && ln -s /srv /d/a\nCOPY tree /d"),
    _copy("copy-link-replaces-a-file", "RUN mkdir /d && echo x >/d/link\nCOPY tree /d"),
    _copy(
        "copy-hard-links-of-the-context",
        "COPY h /h\nCOPY h/one h/two /named/",
        {"h/one": "1", "h/two": HardLink("h/one")},
    ),
    _copy("copy-owner-is-root", "USER app\nCOPY tree /mine/"),
    _copy("copy-chown-names", "COPY --chown=app:staff tree /own/"),
    _copy("copy-chown-user-alone-takes-its-group", "COPY --chown=app tree/a /own/deep/a"),
    _copy("copy-chown-numbers", "COPY --chown=12:34 tree /own"),
    _copy("copy-chown-number-alone", "COPY --chown=77 tree/a /own"),
    _copy("copy-chown-number-that-is-known", "COPY --chown=1000 tree/a /own"),
    _copy("copy-chown-mixed", "COPY --chown=app:7 tree/a /own1\nCOPY --chown=7:staff tree/a /own2"),
    _copy(
        "copy-chown-big-numbers",
        "COPY --chown=4000000000:3000000000 tree/a /own",
        differs={"owner: Docker '0:0'": "Docker reads no larger number than 2147483647, and copies as root"},
    ),
    _copy(
        "copy-chown-of-users-made-before",
        "RUN echo 'new:x:321:654::/:/bin/sh' >>/etc/passwd\nCOPY --chown=new tree/a /own",
    ),
    _copy("copy-chown-of-a-folder-that-is-there", "COPY --chown=app tree /srv"),
    _copy("copy-chown-variable", "ARG who=app\nENV group=staff\nCOPY --chown=$who:${group} tree/a /own"),
    _copy(
        "copy-chmod-file",
        "COPY --chmod=0600 tree/a /mode\nCOPY --chmod=4751 tree/a /set",
        older=(Older(r"/set \(file\) mode: Docker '0751'", (23, 0), "it forgets set-ids"),),
    ),
    _copy("copy-chmod-folder", "COPY --chmod=750 tree /mode", older=PARENTS),
    _copy("copy-chmod-parents", "COPY --chmod=640 tree/a /p1/p2/mode", older=PARENTS),
    _copy("copy-chmod-and-chown", "COPY --chmod=511 --chown=app tree/sub /mode/", older=PARENTS),
    _copy(
        "copy-modes-of-the-context",
        "COPY m /m",
        {f"m/{mode:o}": File(b"", mode) for mode in (0o400, 0o666, 0o777, 0o4755, 0o2711)},
    ),
    _copy(
        "copy-times-of-the-context",
        "COPY t /t\nCOPY t/old /one",
        {"t/old": File(b"", 0o644, 1), "t/late": File(b"", 0o644, 1_500_000_000)},
    ),
    _copy("copy-an-empty-folder", "COPY tree/empty /e"),
    _copy("copy-an-empty-file", "COPY zero /z", {"zero": ""}),
    _copy("copy-json-form-with-spaces", 'COPY ["a b", "/to here/"]', {"a b": "spaces"}),
    _copy(
        "copy-unicode-and-odd-names",
        "COPY n /n",
        {"n/h\u00e9llo \u4e16\u754c": "u", "n/new\nline": "n", "n/\x01\\": "c", "n/-dash": "d"},
    ),
    _copy(
        "copy-long-paths", "COPY deep /deep", {"deep/" + "/".join(["d" * 60] * 12): "deep", "deep/" + "n" * 255: "long"}
    ),
    _copy(
        "copy-from-stage-by-name-and-number",
        "RUN echo s >/made\n"
        f"FROM {BASE} AS two\n"
        "RUN echo t >/made\n"
        f"FROM {BASE}\n"
        "COPY --from=0 /made /m0\n"
        "COPY --from=two /made /m1\n"
        "COPY --from=1 made /m2",
    ),
    _copy(
        "copy-from-stage-keeps-owners-and-modes",
        "RUN mkdir -p /d/e && touch /d/e/f && chown -R 5:6 /d && chmod 4701 /d/e/f && chmod 1770 /d/e\n"
        f"FROM {BASE}\n"
        "COPY --from=0 /d /d\n"
        "COPY --from=0 /d/e/f /f",
    ),
    _copy(
        "copy-from-stage-chown",
        f"RUN mkdir /d && touch /d/f && chown -R 5:6 /d\nFROM {BASE}\nCOPY --from=0 --chown=app /d /d/",
    ),
    _copy(
        "copy-from-stage-hard-links",
        f"RUN mkdir -p /d/x && echo 1 >/d/one && ln /d/one /d/x/two\nFROM {BASE}\nCOPY --from=0 /d /d",
    ),
    _copy(
        "copy-from-stage-links",
        "RUN mkdir /d && ln -s one /d/rel && ln -s /etc/motd /d/abs && echo 1 >/d/one\n"
        f"FROM {BASE}\n"
        "COPY --from=0 /d /d\n"
        "COPY --from=0 /d/rel /r\n"
        "COPY --from=0 /d/abs /a\n"
        "COPY --from=0 /lib /lib-of",
    ),
    _copy(
        "copy-from-stage-special-files",
        "RUN mkdir /d && mkfifo -m 604 /d/fifo && mknod /d/null c 1 3 && mknod /d/blk b 7 9\n"
        f"FROM {BASE}\n"
        "COPY --from=0 /d /d",
        older=(Older(r"/d/(fifo|null|blk) ", (23, 0), "it cannot copy special files"),),
    ),
    _copy(
        "copy-from-stage-capabilities",
        "RUN mkdir /d && cp /bin/setattr /d/x && setattr /d/x security.capability 0100000200040000000000000000000000000000\n"
        f"FROM {BASE}\n"
        "COPY --from=0 /d /d\n"
        "COPY --from=0 /d/x /x",
    ),
    _copy(
        "copy-from-stage-glob-then-a-name",
        "RUN mkdir -p /d/a /d/b /d/c && touch /d/a/x /d/c/x /d/c/y && ln -s c /d/link\n"
        f"FROM {BASE}\n"
        "COPY --from=0 /d/*/x /g/\n"
        "COPY --from=0 /d/?/y /h",
    ),
    _copy(
        "copy-from-stage-glob-of-links",
        "RUN mkdir /d && ln -s /etc/motd /d/l1 && ln -s /opt /l2 && ln -s /d /e\n"
        f"FROM {BASE}\n"
        "COPY --from=0 /d/l* /l?/deep /g/\n"
        "COPY --from=0 /e/l* /one",
    ),
    _copy(
        "copy-from-stage-glob",
        f"RUN mkdir /d && touch /d/a1 /d/a2 /d/b1\nFROM {BASE}\nCOPY --from=0 /d/a* /g/\nCOPY --from=0 /d/b? /one",
    ),
    _copy(
        "copy-from-stage-relative-is-from-the-root",
        f"WORKDIR /w\nRUN touch /w/f /g\nFROM {BASE}\nWORKDIR /x\nCOPY --from=0 w/f g ./",
    ),
    _copy("copy-from-image", f"COPY --from={BASE} /etc/passwd /opt/deep /got/"),
    _copy(
        "copy-from-stage-over-deleted",
        f"RUN rm -r /opt && mkdir /opt && touch /opt/n\nFROM {BASE}\nCOPY --from=0 /opt /opt",
    ),
    _copy(
        "copy-from-stage-times",
        f"RUN mkdir /d && touch -d @1000000 /d/f /d\nFROM {BASE}\nCOPY --from=0 /d /d\nCOPY --from=0 /d/f /f",
    ),
    _copy("add-file-is-copied", "ADD tree/a /a\nADD tree /t/"),
    _copy("add-tar", "ADD a.tar /x", {"a.tar": TAR}),
    _copy(
        "add-tar-gz-xz-bz2",
        "ADD a.tgz /gz/\nADD a.txz /xz\nADD a.bz2 /bz/",
        {"a.tgz": gzip.compress(TAR, mtime=0), "a.txz": lzma.compress(TAR), "a.bz2": bz2.compress(TAR)},
    ),
    _copy(
        "add-tar-by-content-not-by-name",
        "ADD picture.png fake.tar /x/",
        {"picture.png": gzip.compress(TAR, mtime=0), "fake.tar": "no archive\n"},
    ),
    _copy(
        "add-tar-over-what-is-there",
        "RUN mkdir -p /packed/sub && ln -s /srv /packed/named && chmod 777 /packed\nADD a.tar /",
        {"a.tar": TAR},
    ),
    _copy(
        "add-tar-chown",
        "ADD --chown=app:staff a.tar /x",
        {"a.tar": TAR},
        older=(Older(r"owner: Docker", (29, 0), "an archive keeps its owners"),),
    ),
    _copy("add-tar-to-a-linked-folder", "ADD a.tar /lib", {"a.tar": TAR}),
    _copy("add-several-with-an-archive", "ADD a.tar plain /x/", {"a.tar": TAR, "plain": "p"}),
    _copy("copy-tar-is-not-unpacked", "COPY a.tar /x/", {"a.tar": TAR}),
    _copy("add-gzip-of-no-tar", "ADD a.gz /x/", {"a.gz": gzip.compress(b"plain text\n", mtime=0)}),
    _copy(
        "add-damaged-archive-is-a-file",
        "ADD a.tar.gz /x/",
        {"a.tar.gz": b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + b"\x01" * 40},
    ),
    _copy("add-url-to-a-name", "ADD @HTTP@/dated/file /x/y"),
    _copy("add-url-into-a-folder", "ADD @HTTP@/plain/file.txt /x/"),
    _copy("add-url-name-from-the-header", "ADD @HTTP@/named/other /x/"),
    _copy("add-url-chown-chmod", "ADD --chown=app @HTTP@/dated/file /own"),
    _copy("add-url-variable", "ARG path=dated\nADD @HTTP@/$path/file /x"),
)
