"""Cases: what RUN leaves, how stages lie upon each other, WORKDIR, USER, VOLUME, mounts, and the ignore file."""

from __future__ import annotations

from tests.support.differential.base import NET_BIND_SERVICE
from tests.support.differential.case import BASE, Case, Item, Older

MANY: dict[str, Item] = {
    name: name
    for name in (
        "a.md",
        "b.txt",
        "keep.md",
        "d/a.md",
        "d/keep.md",
        "d/e/a.md",
        "d/e/f.log",
        "x/y/z",
        ".git/config",
        ".env",
    )
}

# What a mount needed to have in its place.
STUBS = (Older(r"only with Docker: kind (directory|file), mode 07?55", (23, 0), "the places of mounts stay"),)


def _run(name: str, lines: str, **rest: object) -> Case:
    return Case(name, f"FROM {BASE}\n{lines}\n", **rest)  # type: ignore[arg-type]


def _ignore(name: str, patterns: str, *, lines: str = "COPY . /all") -> Case:
    return Case(f"ignore-{name}", f"FROM {BASE}\n{lines}\n", {**MANY, ".dockerignore": patterns})


CASES = (
    _run("run-removes-a-file", "RUN rm /etc/motd /srv/kept"),
    _run("run-removes-a-folder", "RUN rm -r /opt"),
    _run("run-removes-and-makes-a-file-again", "RUN rm /etc/motd && echo new >/etc/motd"),
    _run("run-removes-and-makes-a-folder-again", "RUN rm -r /opt/deep && mkdir /opt/deep && touch /opt/deep/new"),
    _run(
        "run-file-becomes-folder-and-back",
        "RUN rm /etc/motd && mkdir /etc/motd && touch /etc/motd/in\nRUN rm -r /etc/motd && echo f >/etc/motd",
    ),
    _run("run-folder-becomes-link", "RUN mv /opt /moved && ln -s moved /opt"),
    _run("run-removed-in-a-later-step", "RUN mkdir /n && touch /n/a /n/b\nRUN rm /n/a\nRUN rm -r /n && mkdir /n"),
    _run(
        "run-removed-in-a-later-stage",
        f"RUN mkdir /n && touch /n/a /n/b\nFROM {BASE}\nRUN touch /other\nCOPY --from=0 /n /n\nRUN rm /n/a",
    ),
    _run(
        "run-opaque-over-two-stages",
        f"FROM {BASE} AS one\n"
        "RUN rm -r /opt/deep && mkdir -p /opt/deep/inner\n"
        "FROM one\n"
        "RUN touch /opt/deep/inner/late",
    ),
    _run("run-renames-a-folder-of-the-base", "RUN mv /opt/deep /opt/other"),
    _run("run-renames-over-a-file", "RUN echo n >/n && mv /n /etc/motd"),
    _run("run-swaps-names", "RUN mv /etc/motd /m && mv /etc/group /etc/motd && mv /m /etc/group"),
    _run("run-changes-a-mode-only", "RUN chmod 4711 /bin/busybox && chmod 700 /opt/deep && chmod 1777 /srv"),
    _run("run-changes-an-owner-only", "RUN chown 1000:50 /etc/motd /opt && chown -h 7:8 /lib"),
    _run("run-changes-a-time-only", "RUN touch -d @86400 /etc/motd /srv"),
    _run("run-changes-content-and-keeps-the-time", "RUN echo other >/etc/motd && touch -d @981173106 /etc/motd"),
    _run("run-breaks-a-hard-link", "RUN rm /srv/same && echo x >/srv/same"),
    _run("run-writes-through-a-hard-link", "RUN echo more >>/srv/same"),
    _run(
        "run-makes-hard-links",
        "RUN echo 1 >/one && ln /one /two && mkdir /z && ln /one /z/three && ln /etc/motd /etc/motd2",
    ),
    _run("run-makes-hard-links-to-links", "RUN ln -s /etc /l1 && ln /l1 /l2 2>/dev/null || true"),
    _run(
        "run-makes-special-files",
        "RUN mkfifo -m 640 /fifo && mknod -m 604 /null c 1 3 && mknod /blk b 300 70000 && chown 5:6 /blk",
    ),
    _run("run-keeps-setuid-and-sticky", "RUN touch /u /g /s && chmod 4755 /u && chmod 2755 /g && mkdir -m 3777 /t"),
    _run("run-sets-capabilities", f"RUN cp /bin/setattr /x && setattr /x security.capability {NET_BIND_SERVICE}"),
    _run(
        "run-capabilities-survive-a-rename",
        f"RUN cp /bin/setattr /x && setattr /x security.capability {NET_BIND_SERVICE}\nRUN mv /x /y",
    ),
    _run(
        "run-capabilities-fall-with-an-owner",
        f"RUN cp /bin/setattr /x && setattr /x security.capability {NET_BIND_SERVICE}\nRUN chown 5 /x",
    ),
    _run(
        "run-user-attributes-are-seen-by-later-steps",
        "RUN touch /x && setattr /x user.test 6869\nRUN touch /x && ls -l /x >/dev/null",
    ),
    _run("run-big-owners", "RUN touch /x /y && chown 4294967294:4294967294 /x && chown 2097152:2097153 /y"),
    _run(
        "run-odd-names",
        """RUN mkdir /n && cd /n && touch "$(printf 'new\\nline')" 'träiling ' "$(printf '\\377\\001')" """
        """.wh -- '-x' && ln -s "$(printf 'a\\nb')" l""",
    ),
    _run(
        "run-long-names",
        "RUN n=$(printf '%0200d' 0) && mkdir -p /$n/$n/$n && touch /$n/$n/$n/$n && ln -s /$n/$n/$n/$n /l && "
        "ln /$n/$n/$n/$n /h",
    ),
    _run("run-large-and-sparse", "RUN truncate -s 3000000 /s && printf end >>/s && seq 200000 >/big"),
    _run("run-old-and-far-times", "RUN touch /a /b && touch -d @1 /a && touch -d @5000000000 /b"),
    _run(
        "run-the-mount-points-leave-nothing",
        "RUN touch /dev/left /proc/left /sys/left 2>/dev/null; echo h >>/etc/hosts; echo r >>/etc/resolv.conf; "
        "touch /dev/shm/x; true",
    ),
    _run("run-hosts-file-that-was-removed", "RUN rm -f /etc/hosts /etc/resolv.conf 2>/dev/null; touch /x"),
    _run("run-changes-nothing", "RUN true"),
    _run(
        "run-writes-to-the-temporary-folder",
        "RUN echo t >/tmp/t && mkdir -p /var/tmp && touch /var/tmp/x /run-not /dev/null",
    ),
    _run(
        "run-as-user",
        "USER app\nRUN id -u >/tmp/id; id -g >>/tmp/id; id -G >>/tmp/id; echo $HOME >>/tmp/id; pwd >>/tmp/id",
    ),
    _run("run-as-user-and-group", "USER app:staff\nRUN id -u >/tmp/id; id -G >>/tmp/id"),
    _run(
        "run-as-numbers",
        "USER 1000\n"
        "RUN id -u >/tmp/a; id -G >>/tmp/a; echo $HOME >>/tmp/a\n"
        "USER 55:66\n"
        "RUN id -u >/tmp/b; id -G >>/tmp/b; echo $HOME >>/tmp/b",
    ),
    _run("run-home-of-root", "RUN echo $HOME >/home-is\nENV HOME=/elsewhere\nRUN echo $HOME >/home-was"),
    _run("run-environment", "ENV A=1\nARG B=2\nRUN env | grep -v ^HOSTNAME= | sort >/env"),
    _run("run-sees", "RUN umask >/see; ulimit -c >/dev/null; cat /proc/sys/kernel/hostname >>/see; tty >>/see; true"),
    _run("run-argument-zero", 'RUN echo $0 >/zero; echo $$ >/dev/null\nRUN ["/bin/sh", "-c", "echo $0 >/zero2"]'),
    _run("run-exit-by-a-list", "RUN false || echo survived >/x"),
    _run("run-tmpfs-leaves-nothing", "RUN --mount=type=tmpfs,target=/mem/deep echo x >/mem/deep/x", older=STUBS),
    _run("run-tmpfs-over-a-folder", "RUN --mount=type=tmpfs,target=/srv touch /srv/x && ls /srv >/seen"),
    _run(
        "run-bind-leaves-nothing",
        "RUN --mount=target=/ctx,rw cat /ctx/f >/got && echo y >/ctx/f && touch /ctx/new",
        files={"f": "f"},
        older=STUBS,
    ),
    _run(
        "run-bind-of-a-file",
        "RUN --mount=source=f,target=/some/where cat /some/where >/got",
        files={"f": "f"},
        older=STUBS,
    ),
    _run(
        "run-bind-from-a-stage",
        f"FROM {BASE} AS one\nRUN echo s >/s\nFROM {BASE}\nRUN --mount=from=one,source=/s,target=/mnt/s cp /mnt/s /got",
        older=STUBS,
    ),
    _run("run-secret-leaves-nothing", "RUN --mount=type=secret,id=none ls /run/secrets >/seen 2>/dev/null; true"),
    _run(
        "run-cache-leaves-nothing",
        "RUN --mount=type=cache,target=/c/d echo x >/c/d/x\nRUN --mount=type=cache,target=/c/d cat /c/d/x >/got",
        own_machine=True,
        older=STUBS,
    ),
    _run(
        "stage-upon-stage",
        f"RUN echo 1 >/1\nENV A=1\nFROM {BASE} AS b\nRUN echo b >/b\nFROM b AS c\nWORKDIR /c\nFROM c\nRUN pwd >/d",
    ),
    _run("stage-not-needed-does-not-run", f"RUN false\nFROM {BASE}\nRUN touch /ok"),
    _run(
        "stage-target",
        f"RUN touch /one\nFROM {BASE} AS wanted\nRUN touch /two\nFROM {BASE}\nRUN false",
        target="wanted",
    ),
    _run(
        "stage-target-in-other-case-and-number",
        f"FROM {BASE} AS Named\nRUN touch /two\nFROM {BASE}\nRUN false",
        target="NAMED",
    ),
    Case(
        "stage-from-scratch",
        f"FROM {BASE} AS a\nRUN mkdir /d && touch /d/f\nFROM scratch\nCOPY --from=a /d /\nCOPY f /x/y\n",
        {"f": "f"},
    ),
    Case(
        "stage-image-as-base",
        "FROM differential/run-removes-a-folder:1\nRUN mkdir /opt && touch /opt/back\n",
        after=("run-removes-a-folder",),
    ),
    _run("workdir-is-made", "WORKDIR /a/b/c\nRUN pwd >here"),
    _run("workdir-is-made-by-root-whoever-the-user-is", "USER app\nWORKDIR /a/b"),
    _run("workdir-relative", "WORKDIR /a\nWORKDIR b\nWORKDIR ../c\nRUN pwd >/here"),
    _run("workdir-relative-at-first", "WORKDIR a/b"),
    _run("workdir-that-is-there", "RUN mkdir -m 711 /w && chown 5:6 /w && touch -d @5 /w\nWORKDIR /w"),
    _run(
        "workdir-variable-and-slash",
        "ENV D=/x/y\nWORKDIR $D/\nWORKDIR ${D}/../z/",
        older=(Older("config WorkingDir", (23, 0), "the path is kept as it is written"),),
    ),
    _run("workdir-through-a-link", "WORKDIR /lib\nRUN pwd >here\nWORKDIR /lib/new"),
    _run("workdir-with-spaces", "WORKDIR /a b/c\nRUN pwd >here"),
    _run("workdir-root", "WORKDIR /\nRUN pwd >/here"),
    _run(
        "volume-then-changes",
        "RUN mkdir /v && touch /v/before\nVOLUME /v\nRUN touch /v/after\nCOPY f /v/copied",
        files={"f": "f"},
    ),
    _ignore("names-and-comments", "# comment\na.md\n  b.txt  \n\n/x\n"),
    _ignore("anchored", "e\nkeep.md\n"),
    _ignore("any-depth", "**/*.md\n"),
    _ignore("star-is-one-component", "*/a.md\n*.txt\n"),
    _ignore("exceptions", "*.md\nd\n!keep.md\n!d/e/f.log\n"),
    _ignore("last-match-wins", "!a.md\n**/a.md\n!d/a.md\nd/a.md\n"),
    _ignore("all-but", "*\n!d/e\n"),
    _ignore("dotfiles-and-git", ".git\n.*\n"),
    _ignore("question-marks-and-classes", "?.md\n[b-c].txt\nd/[!e]*\n"),
    _ignore("dockerfile-itself", "Dockerfile\n.dockerignore\n**/e\n"),
    _ignore("trailing-slashes-and-dots", "d/e/\n./x/./y\nx/../b.txt\n"),
    _ignore("double-star-in-the-middle", "d/**/f.log\n**/y/**\n"),
    _ignore("named-folder-that-is-partly-ignored", "d/a.md\n", lines="COPY d /d\nCOPY d/e/ /e/"),
    _ignore("glob-does-not-see-what-is-ignored", "a.md\n", lines="COPY *.md /g/"),
    Case(
        "ignore-file-of-the-dockerfile",
        f"FROM {BASE}\nCOPY . /all\n",
        {**MANY, ".dockerignore": "a.md\n", "Dockerfile.dockerignore": "b.txt\n"},
    ),
    Case(
        "ignore-byte-order-mark-and-crlf",
        f"FROM {BASE}\nCOPY . /all\n",
        {**MANY, ".dockerignore": "\ufeffa.md\r\n!x\r\nb.txt\r\n"},
    ),
)
