"""The keys that detach from a machine, found in what is typed."""

from __future__ import annotations

from firebuild.errors import UsageError

DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"
_CONTROL = {**{chr(ord("a") + i): i + 1 for i in range(26)}, "@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def parse_detach_keys(text: str) -> bytes:
    """The bytes of a sequence such as `ctrl-p,ctrl-q` or `ctrl-a,d`; empty for none. Raises UsageError."""
    keys = bytearray()
    for word in text.split(",") if text else ():
        control = _CONTROL.get(word[5:]) if word.startswith("ctrl-") else None
        if control is not None:
            keys.append(control)
        elif len(word) == 1 and word.isascii() and word.isprintable():
            keys.append(ord(word))
        else:
            raise UsageError(
                f"`{word}` is not a key to detach with",
                hint="write characters and ctrl-a to ctrl-z (also @ [ \\ ] ^ _) between commas, such as ctrl-p,ctrl-q",
            )
    return bytes(keys)


class DetachKeys:
    """Finds the sequence in what is typed, however it comes in pieces. What may be its beginning is held back."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """What is to be handed on of `data` and of what was held, and whether the sequence was typed."""
        if not self._keys:
            return data, False
        seen = self._held + data
        at = seen.find(self._keys)
        if at >= 0:
            self._held = b""
            return seen[:at], True
        most = min(len(seen), len(self._keys) - 1)
        held = next((n for n in range(most, 0, -1) if seen.endswith(self._keys[:n])), 0)
        self._held = seen[len(seen) - held :]
        return seen[: len(seen) - held], False
