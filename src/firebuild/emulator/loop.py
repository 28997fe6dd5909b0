"""One thread's event loop: callbacks for descriptors and timers, over epoll."""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
_BROKEN = select.EPOLLERR | select.EPOLLHUP


class Timer:
    """A call at a point in time; `cancel` withdraws it."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """The callback will not be called."""
        self.callback = None


class Loop:
    """Calls `callback(events)` for each ready descriptor, where errors and hang-ups count as both READ and WRITE."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, tuple[int, Callable[[int], None]]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._stopped = False

    def watch(self, descriptor: int, events: int, callback: Callable[[int], None]) -> None:
        """Set what a descriptor is watched for; 0 stops watching. Raises PermissionError for one that cannot be watched."""
        old = self._callbacks.get(descriptor)
        if events == 0:
            if old is not None:
                self.forget(descriptor)
            return
        if old is None:
            self._epoll.register(descriptor, events)
        elif old[0] != events:
            self._epoll.modify(descriptor, events)
        self._callbacks[descriptor] = (events, callback)

    def forget(self, descriptor: int) -> None:
        """Stop watching; before the descriptor is closed."""
        if self._callbacks.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call once, after `delay_s`."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._order), timer))
        return timer

    def stop(self) -> None:
        """Let `run` return after the current round."""
        self._stopped = True

    def run(self) -> None:
        """Until `stop`."""
        self._stopped = False
        while not self._stopped:
            self.run_once(self._next_timer_s())

    def run_once(self, timeout_s: float | None) -> None:
        """One round: wait at most `timeout_s` (None: for ever), then call what is ready."""
        for descriptor, events in self._epoll.poll(timeout_s):
            entry = self._callbacks.get(descriptor)
            # An earlier callback of this round may have changed its mind about this descriptor.
            if entry is None:
                continue
            wanted, callback = entry
            ready = (events | READ | WRITE) & wanted if events & _BROKEN else events & wanted
            if ready:
                callback(ready)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.callback is not None:
                timer.callback()

    def close(self) -> None:
        """Give the epoll descriptor back."""
        self._epoll.close()

    def _next_timer_s(self) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
