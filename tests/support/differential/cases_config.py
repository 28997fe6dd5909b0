"""Cases: what the image says of how it is to be run."""

from __future__ import annotations

from tests.support.differential.case import BASE, Case


def _config(name: str, lines: str, **rest: object) -> Case:
    return Case(name, f"FROM {BASE}\n{lines}\n", **rest)  # type: ignore[arg-type]


CASES = (
    _config("cmd-forms", "CMD echo  a 'b c'\nRUN true"),
    _config("cmd-last-counts", 'CMD a\nCMD ["b"]'),
    _config("cmd-of-the-base-falls-with-entrypoint", 'ENTRYPOINT ["e"]'),
    _config("cmd-before-entrypoint-stays", 'CMD ["c"]\nENTRYPOINT ["e"]'),
    _config("cmd-after-entrypoint", 'ENTRYPOINT ["e"]\nCMD ["c"]'),
    _config("cmd-of-a-stage-falls-with-entrypoint", f'FROM {BASE} AS one\nCMD ["c"]\nFROM one\nENTRYPOINT ["e"]'),
    _config("entrypoint-shell-form", 'ENTRYPOINT exec top -b\nCMD ["x"]'),
    _config("entrypoint-reset", f'FROM {BASE} AS one\nENTRYPOINT ["e"]\nFROM one\nENTRYPOINT []'),
    _config(
        "label-forms", 'LABEL a=1 b=\'two words\' "c d"="e f" g=\nLABEL old style\nLABEL multi="line \\\n  goes on"'
    ),
    _config("label-overwrites", f"FROM {BASE} AS one\nLABEL a=1 b=2\nFROM one\nLABEL b=3 c=4"),
    _config("label-odd", 'LABEL com.example.x="{\\"j\\": [1]}" y=a=b z=\'$x\' "quoted key"=v'),
    _config("expose-forms", "EXPOSE 80 443/tcp 53/UDP 9/sctp\nEXPOSE 8000-8003/udp\nEXPOSE 80"),
    _config("volume-forms", 'VOLUME /a /b\nVOLUME ["/c d", "/e"]\nVOLUME rel/path'),
    _config("user-forms", "USER app\nUSER app:staff\nUSER 12:34"),
    _config("user-unknown-is-no-error-until-it-runs", "USER nobody-here:nowhere"),
    _config("stopsignal", "STOPSIGNAL SIGQUIT\nSTOPSIGNAL 9"),
    _config("maintainer", "MAINTAINER A. Person <a@example.org>"),
    _config(
        "healthcheck-forms",
        "HEALTHCHECK --interval=5m --timeout=1.5s --start-period=1h2m3s --retries=7 CMD curl -f http://x || exit 1",
    ),
    _config("healthcheck-json", 'HEALTHCHECK CMD ["curl", "x"]'),
    _config("healthcheck-none", f"FROM {BASE} AS one\nHEALTHCHECK CMD a\nFROM one\nHEALTHCHECK NONE"),
    _config("healthcheck-inherited", f"FROM {BASE} AS one\nHEALTHCHECK --retries=3 CMD a\nFROM one\nRUN true"),
    _config("healthcheck-last-counts", "HEALTHCHECK --retries=3 CMD a\nHEALTHCHECK --interval=2s CMD b"),
    _config("workdir-in-the-config", "WORKDIR /a/\nWORKDIR ./b//c/.."),
    _config(
        "config-inherited-from-a-stage",
        f"FROM {BASE} AS one\n"
        "ENV A=1\n"
        "LABEL l=1\n"
        "USER app\n"
        "WORKDIR /w\n"
        "EXPOSE 1\n"
        "VOLUME /v\n"
        "STOPSIGNAL SIGHUP\n"
        'ENTRYPOINT ["e"]\n'
        'CMD ["c"]\n'
        "FROM one\n"
        "ENV B=2\n"
        "LABEL m=2",
    ),
    _config("onbuild-in-the-config", "ONBUILD RUN echo a $B >/x\nONBUILD COPY . /y\nONBUILD ENV A=1"),
    Case(
        "onbuild-of-an-image",
        "FROM differential/onbuild-base:1\nRUN touch /after\n",
        {"f": "f"},
        after=("onbuild-base",),
    ),
    _config(
        "onbuild-base",
        "ENV B=base\n"
        "ONBUILD RUN echo $B $C >/triggered\n"
        "ONBUILD COPY f /copied/\n"
        "ONBUILD ENV A=1\n"
        "ONBUILD ARG D=2\n"
        'ONBUILD CMD ["triggered"]\n'
        "ONBUILD WORKDIR /w",
    ),
    _config(
        "onbuild-of-a-stage",
        f"FROM {BASE} AS one\n"
        "ONBUILD RUN echo o >>/o\n"
        "ONBUILD LABEL x=y\n"
        "FROM one AS two\n"
        "RUN echo t >>/o\n"
        "FROM two\n"
        "RUN echo u >>/o",
    ),
    _config(
        "onbuild-does-not-go-further",
        f"FROM {BASE} AS one\nONBUILD RUN touch /o\nFROM one AS two\nRUN rm /o\nFROM two\nRUN test ! -e /o",
    ),
    Case("config-of-scratch", 'FROM scratch\nCOPY f /\nCMD ["/f"]\n', {"f": "f"}),
    Case(
        "config-of-an-image",
        'FROM differential/config-inherited-from-a-stage:1\nENV C=3\nCMD ["n"]\n',
        after=("config-inherited-from-a-stage",),
    ),
    Case("config-from-alone", f"FROM {BASE}\n"),
    _config("config-without-layers", 'ENV A=1\nLABEL b=2\nCMD ["c"]'),
    _config(
        "history-of-layers",
        "RUN true\nENV A=1\nWORKDIR /etc\nWORKDIR /new\nCOPY f /\nUSER app\nARG X=1\nADD f /g\nLABEL a=b",
        files={"f": "f"},
    ),
)
