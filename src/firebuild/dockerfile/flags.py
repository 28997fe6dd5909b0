"""The flags that each instruction takes, as a table, and their reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec

from firebuild.dockerfile.errors import SpanError, did_you_mean, shown
from firebuild.dockerfile.words import Word

BOOLEAN = "boolean"
TEXT = "text"
TEXTS = "texts"

_TRANSFER = {"chmod": TEXT, "chown": TEXT, "exclude": TEXTS, "link": BOOLEAN}

FLAGS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "ADD": {**_TRANSFER, "checksum": TEXT, "keep-git-dir": BOOLEAN, "unpack": BOOLEAN},
        "COPY": {**_TRANSFER, "from": TEXT, "parents": BOOLEAN},
        "FROM": {"platform": TEXT},
        "HEALTHCHECK": {
            "interval": TEXT,
            "retries": TEXT,
            "start-interval": TEXT,
            "start-period": TEXT,
            "timeout": TEXT,
        },
        "RUN": {"mount": TEXTS, "network": TEXT, "security": TEXT},
    }
)

# Flags of BuildKit that a build machine cannot honour: refused by name, with the reason.
REFUSED_FLAGS: Mapping[tuple[str, str], str] = MappingProxyType(
    {("RUN", "device"): "a build machine has none of the host's devices"}
)


class Flags(msgspec.Struct, frozen=True):
    """The flags of one instruction by name, each with the offset where it stands."""

    texts: Mapping[str, tuple[Word, ...]]
    booleans: Mapping[str, bool]

    def text(self, name: str) -> str | None:
        """The value of a flag that may be given once, or None."""
        word = self.word(name)
        return word.text if word else None

    def word(self, name: str) -> Word | None:
        """Like `text`, with the flag's offset."""
        words = self.texts.get(name)
        return words[0] if words else None

    def all(self, name: str) -> tuple[Word, ...]:
        """The values of a flag that may be repeated."""
        return self.texts.get(name, ())


def parse_flags(instruction: str, words: Sequence[Word]) -> Flags:
    """Reads the flags of an instruction. Raises SpanError for an unknown, repeated, valueless or malformed one."""
    known = FLAGS.get(instruction, {})
    texts: dict[str, tuple[Word, ...]] = {}
    booleans: dict[str, bool] = {}
    for word in words:
        name, equals, value = word.text[2:].partition("=")
        flag = f"--{name}"
        reason = REFUSED_FLAGS.get((instruction, name))
        if reason:
            raise SpanError(f"{instruction} {flag} is not supported: {reason}", offset=word.offset)
        kind = known.get(name)
        if kind is None:
            hint = did_you_mean(name, known, prefix="--")
            if hint is None and known:
                hint = f"{instruction} takes " + ", ".join(f"`--{each}`" for each in sorted(known))
            raise SpanError(
                f"unknown flag {shown(flag)} of {instruction}",
                offset=word.offset,
                hint=hint or f"{instruction} takes no flags",
            )
        if kind != TEXTS and (name in texts or name in booleans):
            raise SpanError(f"{instruction} {flag} is given twice", offset=word.offset)
        if kind == BOOLEAN:
            if value.lower() not in ("", "true", "false") or (equals and not value):
                raise SpanError(f"{instruction} {flag} is true or false, not {shown(value)}", offset=word.offset)
            booleans[name] = value.lower() != "false"
        elif not equals:
            raise SpanError(f"{instruction} {flag} needs a value", offset=word.offset, hint=f"write `{flag}=…`")
        else:
            texts[name] = (*texts.get(name, ()), Word(value, word.offset))
    return Flags(texts, booleans)
