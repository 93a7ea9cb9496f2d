"""How many requests may be under way: as many as the engines answer within a latency goal, found by watching them.

Knows nothing of requests but when they are let in and how long they took.
"""

import time
from collections.abc import Callable

FIRST_LIMIT = 32
MAX_LIMIT = 4096
#: Below this share of the goal the limit grows with every answer, as a new connection of TCP does; above it stays.
EASY_SHARE = 0.5
DEEPEST_CUT = 0.5


class Admission:
    """A limit on requests under way that follows their latency.

    It grows only while it is what holds requests back. While they take longer than `goal_s` it shrinks in proportion,
    at most to half at a time and once per latency, because only later requests show what that did. It never falls below
    `minimum`: an engine needs that many to fill a batch.
    """

    def __init__(self, goal_s: float, minimum: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.goal_s = goal_s
        self.minimum = minimum
        self.accepted = self.refused = self.under_way = 0
        self._limit = float(max(FIRST_LIMIT, minimum))
        self._clock = clock
        self._held_back = False
        self._shrunk_at = clock()

    @property
    def limit(self) -> int:
        """Requests that may be under way now."""
        return int(self._limit)

    def enter(self) -> bool:
        """Whether one more request may go in. It must `leave` again."""
        if self.under_way >= self.limit:
            self._held_back = True
            self.refused += 1
            return False
        self.accepted += 1
        self.under_way += 1
        return True

    def leave(self, latency_s: float | None) -> None:
        """A request is done. `latency_s` is None unless the engines answered it."""
        full = self.under_way >= self.limit
        self.under_way -= 1
        if latency_s is None:
            return
        now = self._clock()
        if latency_s > self.goal_s:
            if now - self._shrunk_at > latency_s:
                self._limit = max(float(self.minimum), self._limit * max(DEEPEST_CUT, self.goal_s / latency_s))
                self._shrunk_at = now
        elif latency_s < EASY_SHARE * self.goal_s and (full or self._held_back):
            self._limit = min(float(MAX_LIMIT), self._limit + 1)
            self._held_back = full
