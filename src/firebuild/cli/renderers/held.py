"""Text that is kept back while somebody else has the terminal."""

from __future__ import annotations

_MAX_CHARACTERS = 4 << 20


class HeldText:
    """Keeps texts in their order; beyond the limit it says how much is left out."""

    def __init__(self, limit: int = _MAX_CHARACTERS) -> None:
        self._parts: list[str] = []
        self._left = limit
        self._lost = 0

    def add(self, text: str) -> None:
        """Keep a text of whole lines."""
        if len(text) <= self._left:
            self._parts.append(text)
            self._left -= len(text)
        else:
            self._left = 0
            self._lost += text.count("\n")

    def take(self) -> str:
        """All of it."""
        lost = f"[{self._lost} more lines are not shown]\n" if self._lost else ""
        return "".join(self._parts) + lost
