"""How many requests may be under way: more as long as the server's answers do not wait for each other.

It sees when requests were sent and answered, and knows nothing of what they are.
"""

import time
from collections.abc import Callable

FIRST = 8
MAX = 1024
#: Requests that wait inside the server: below the first it has too few to be busy, beyond the second more only wait.
FEW_WAITING = 24
MANY_WAITING = 64
GROWTH = 1.5


class InFlight:
    """A limit that follows the server, as TCP Vegas follows a link (Brakmo and Peterson, 1995).

    A round is as many answers as the limit. With the mean latency of the shortest round, the latency without queues,
    `limit * (1 - shortest / mean)` requests wait in the server. Where rows get longer that is too many, and the limit
    falls, though not far below `MANY_WAITING`; to forget the shortest round would let it grow without end. A refusal
    halves the limit, once for all requests that were sent before; from there it grows by one per round.
    """

    def __init__(self, most: int = MAX, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._limit = float(min(FIRST, most))
        self._clock = clock
        self._shortest_s = float("inf")
        self._sum_s = 0.0
        self._answers = 0
        self._halved_at_s = clock()
        self._refused_at = float("inf")

    @property
    def limit(self) -> int:
        """Requests that may be under way now; at least 1."""
        return int(self._limit)

    def answered(self, sent_s: float) -> None:
        """The server has answered a request that was sent at `sent_s`."""
        self._sum_s += self._clock() - sent_s
        self._answers += 1
        if self._answers < self.limit:
            return
        mean_s = max(self._sum_s / self._answers, 1e-9)
        self._sum_s, self._answers = 0.0, 0
        self._shortest_s = min(self._shortest_s, mean_s)
        waiting = self._limit * (1 - self._shortest_s / mean_s)
        if waiting < FEW_WAITING:
            slow = self._limit >= self._refused_at
            self._limit = min(float(self._most), self._limit + 1 if slow else self._limit * GROWTH)
        elif waiting > MANY_WAITING:
            self._limit = max(self._limit / 2, self._limit - (waiting - MANY_WAITING))

    def refused(self, sent_s: float) -> None:
        """The server, or a server that is away, did not take a request that was sent at `sent_s`."""
        if sent_s >= self._halved_at_s:
            self._limit = self._refused_at = max(1.0, self._limit / 2)
            self._halved_at_s = self._clock()
            self._sum_s, self._answers = 0.0, 0
