"""A point in time after which an operation gives up, passed down instead of timeouts."""

from __future__ import annotations

import time

from firebuild.errors import DeadlineError


class Deadline:
    """A moment on the monotonic clock. `what` names the operation in the error."""

    def __init__(self, timeout_s: float, what: str) -> None:
        self.timeout_s = timeout_s
        self.what = what
        self._end = time.monotonic() + timeout_s

    def remaining_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.remaining_s() == 0.0

    def check(self) -> float:
        """Seconds left; raises DeadlineError if there are none."""
        left = self.remaining_s()
        if left == 0.0:
            raise self.error()
        return left

    def error(self) -> DeadlineError:
        """The error to raise when this deadline has passed."""
        return DeadlineError(f"{self.what} took longer than {self.timeout_s:g} s")
