"""Cases: how a file is read, and what variables are worth."""

from __future__ import annotations

from tests.support.differential.case import BASE, Case


def _text(name: str, lines: str, **rest: object) -> Case:
    return Case(name, f"FROM {BASE}\n{lines}\n", **rest)  # type: ignore[arg-type]


CASES = (
    _text(
        "text-continuation-and-comments",
        "RUN echo one \\\n# a comment\n  # one with blanks before\n  two \\\n\n  three >/x",
    ),
    _text("text-comment-marks-inside", "RUN echo '#no comment' >/x # not one either\nENV A=a#b"),
    _text("text-blanks-and-tabs", "\n\t RUN\techo  a   b >/x\n  ENV   A=1   B=2  "),
    _text("text-lower-case", f"run echo a >/x\nEnv A=b\nfrom {BASE} as Next\ncopy --from=0 /x /y"),
    Case("text-crlf", f"FROM {BASE}\r\nRUN echo one \\\r\n  two >/x\r\nENV A=b\r\nLABEL c=d\r\n"),
    Case("text-byte-order-mark", f"\ufeffFROM {BASE}\nRUN touch /x\n"),
    Case(
        "text-escape-directive",
        f"# escape=`\nFROM {BASE}\nRUN echo one `\n  two >/x\nENV A=a`$b\nRUN echo 'back\\slash' >/y\n",
    ),
    Case("text-directive-too-late", f"# a comment\n# escape=`\nFROM {BASE}\nRUN echo a \\\n b >/x\n"),
    Case("text-no-newline-at-the-end", f"FROM {BASE}\nRUN touch /x"),
    _text("text-heredoc-of-the-shell-in-a-continuation", "RUN echo a; \\\n  echo b >/x; \\\n  echo c"),
    _text("text-json-form", 'RUN ["/bin/sh", "-c", "echo \\"q\\" >/x"]\nCMD ["a", "b c"]'),
    _text("text-json-form-expands-nothing", 'ENV A=1\nRUN ["/bin/touch", "/$A"]\nENTRYPOINT ["$A"]'),
    _text("text-malformed-json-is-a-shell-form", "CMD ['a', 'b']\nENTRYPOINT [\"a\", b]"),
    _text("text-json-with-escapes", 'CMD ["\\u00e9\\n\\t\\\\", ""]'),
    _text("text-empty-json", "ENTRYPOINT []\nCMD []"),
    _text(
        "env-forms", 'ENV A=1 B=\'two words\' C="three words" D=four\\ words\nENV OLD form with  blanks\nENV E= F=""'
    ),
    _text("env-quotes-inside", 'ENV A=a\'b\'c"d" B="it\'s" C=\'say "x"\' D="\\"esc\\"" E=\'\\n\' F="\\n"'),
    _text(
        "env-expansion-forms",
        "ENV X=val EMPTY=\nENV A=$X B=${X} C=${X:-d} D=${NO:-def} E=${X:+alt} F=${NO:+alt} G=${EMPTY:-e} H=${EMPTY:+e}",
    ),
    _text(
        "env-expansion-nested", "ENV X=val Y=why\nENV A=${NO:-${X}} B=${NO:-$X/$Y} C=${NO:-${NEVER:-deep}} D=${X:+${Y}}"
    ),
    _text(
        "env-dollars-escaped", 'ENV X=val\nENV A=\\$X B=\\${X} C=\'$X\' D="$X" E="\\$X" F=$ G=$$ H=a$X.b I=$X$X J=${X}y'
    ),
    _text("env-of-one-line-sees-what-was-before", "ENV A=old\nENV A=new B=$A C=${A}\nENV D=$A"),
    _text("env-unset-is-empty", "ENV A=$NEVER/x B=${NEVER}y\nWORKDIR /w$NEVER"),
    _text("env-order-and-overwriting", "ENV B=1 A=2\nENV C=3 B=4\nENV PATH=/x:$PATH"),
    _text("env-does-not-expand-in-run", "ENV A='b  c'\nRUN echo $A \"$A\" '$A' \\$A >/x"),
    _text(
        "arg-default-and-given",
        "ARG A=def\nARG B=def\nARG C\nRUN echo $A $B $C. >/x\nENV A=$A B=$B C=$C",
        args={"B": "given"},
    ),
    _text("arg-is-not-in-the-image", "ARG A=secret\nRUN echo $A >/x"),
    _text("arg-empty", "ARG A\nARG B=\nARG C=x\nENV R=a${A}b${B}c${C:-none}", args={"C": ""}),
    _text("arg-sees-args-before", "ARG A=1\nARG B=${A}2\nARG C=$B$NO\nENV R=$C"),
    _text("arg-and-env-of-one-name", "ARG A=arg\nENV A=env\nRUN echo $A >/x\nENV B=$A", args={"A": "given"}),
    _text("arg-after-env-of-one-name", "ENV A=env\nARG A=arg\nRUN echo $A >/x\nENV B=$A"),
    _text("arg-used-before-it-is-declared", "ENV B=${A:-none}\nRUN echo ${A:-none} >/x\nARG A=late\nENV C=$A"),
    Case(
        "arg-before-from",
        f"ARG base={BASE}\nARG other=out\nFROM $base\nARG other\nARG base=mine\nENV A=$other B=$base\n",
    ),
    Case(
        "arg-before-from-is-not-in-the-stage",
        f"ARG A=global\nFROM {BASE}\nENV B=${{A:-unseen}}\nRUN echo ${{A:-unseen}} >/x\n",
    ),
    Case(
        "arg-before-from-with-defaults",
        "ARG v=1\nARG name=differential/base:$v\nFROM ${name} AS s1\nFROM s$v\nENV A=ok\n",
    ),
    Case("arg-before-from-given", "ARG v=none\nFROM differential/base:${v}\nARG v\nENV V=$v\n", args={"v": "1"}),
    _text("arg-scope-ends-with-the-stage", f"ARG A=1\nENV X=$A\nFROM {BASE}\nENV Y=${{A:-gone}}"),
    _text(
        "arg-in-a-stage-upon-a-stage",
        f"FROM {BASE} AS one\nARG A=1\nENV E=1\nFROM one\nENV Y=${{A:-gone}} Z=$E\nRUN echo ${{A:-gone}} >/x",
    ),
    _text(
        "arg-platforms",
        "ARG TARGETPLATFORM\n"
        "ARG TARGETOS\n"
        "ARG TARGETARCH\n"
        "ARG TARGETVARIANT\n"
        "ARG BUILDPLATFORM\n"
        "ENV A=$TARGETPLATFORM:$TARGETOS:$TARGETARCH:$TARGETVARIANT:$BUILDPLATFORM",
    ),
    _text("arg-platforms-undeclared", "ENV A=${TARGETPLATFORM:-no}:${TARGETARCH:-no}"),
    _text(
        "arg-proxies-need-no-declaration",
        "RUN echo $HTTP_PROXY $http_proxy $NO_PROXY >/x",
        args={"HTTP_PROXY": "http://p:1", "NO_PROXY": "n"},
    ),
    _text("arg-quotes", "ARG A='single $x' \nARG B=\"double\"\nARG C=a\\ b\nENV R1=$A R2=$B R3=$C"),
    _text(
        "expand-in-copy-and-workdir",
        "ENV D=/dest S=sr\nARG N=c\nCOPY ${S}${N} $D/\nWORKDIR ${D:+/made}/$N",
        files={"src": "x"},
    ),
    _text(
        "expand-in-user-expose-volume-label",
        "ENV U=app P=80 V=/data L=lab\n"
        "USER ${U}:staff\n"
        "EXPOSE $P ${P}80/udp\n"
        "VOLUME $V [not,json]\n"
        'LABEL $L=x a=$V "b"="${P}"\n'
        "STOPSIGNAL SIG${NO:-TERM}",
    ),
    _text("expand-not-in-cmd-and-entrypoint", "ENV A=1\nCMD echo $A ${A}\nENTRYPOINT echo $A"),
    _text(
        "shell-instruction",
        'SHELL ["/bin/sh", "-e", "-x", "-c"]\n'
        "RUN echo $- >/x\n"
        "CMD a b\n"
        "ENTRYPOINT c d\n"
        'SHELL ["/bin/busybox", "ash", "-c"]\n'
        "RUN echo $0 >/y\n"
        "HEALTHCHECK CMD e f",
    ),
    _text("shell-of-a-stage-below", f'FROM {BASE} AS one\nSHELL ["/bin/sh", "-ec"]\nFROM one\nRUN echo $- >/x\nCMD a'),
)
