"""Scores a stream of rows: many requests under way, results in the order of the rows, memory bounded.

One thread, the one that iterates, owns all state; the connection's threads only put ended calls into a queue. A row
that waits for a retry keeps its place among those under way, so an overloaded server is sent less. It knows nothing of
files.
"""

import heapq
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from preference_client.in_flight import InFlight
from preference_client.retries import Patience, retry_delay_s
from preference_client.rows import Failure, Outcome, Prediction, Row
from preference_client.transport import Call, Request, Transport
from preference_core.errors import (
    BattleError,
    DeadlineError,
    PassingError,
    PreferenceError,
    ServerError,
    UnavailableError,
)

#: Rows that may be read ahead of the one yielded next, in multiples of the requests under way.
WINDOW_PER_REQUEST = 4

#: Bytes of requests under way above which no further row is read.
MAX_BYTES_IN_FLIGHT = 64 * 2**20


@dataclass(slots=True, eq=False)
class _Slot:
    """A row between its reading and its yielding. It holds its request until there is an outcome."""

    number: int
    id: str
    outcome: Outcome | None = None
    request: Request | None = None
    call: Call | None = None
    first_sent_s: float = 0.0
    sent_s: float = 0.0
    failures: int = 0
    passed: bool = False


class Pipeline:
    """One pass over `rows`, which are numbered from `first`.

    As many of them are under way as the server can use, at most `max_in_flight`; 4 times as many are in memory.
    """

    def __init__(
        self, transport: Transport, rows: Iterable[Row], patience: Patience, max_in_flight: int, first: int = 1
    ) -> None:
        self._transport = transport
        self._rows: Iterator[Row] | None = iter(rows)
        self._patience = patience
        self._allowed = InFlight(max_in_flight)
        self._window: deque[_Slot] = deque()
        self._ended: SimpleQueue[_Slot] = SimpleQueue()
        self._retries: list[tuple[float, int, _Slot]] = []
        self._next = first
        self._in_flight = 0
        self._sent = 0
        self._bytes_in_flight = 0
        self._last_answer_s = float("-inf")

    def outcomes(self) -> Iterator[Outcome]:
        """Yields one outcome per row, in order.

        Raises `ServerError` when the server stays away for the whole deadline of a row, or refuses this client.
        Whatever ends the iteration, requests under way are cancelled.
        """
        try:
            while self._rows is not None or self._window:
                self._settle_ended()
                self._send_due_retries()
                if self._has_room():
                    self._read_one()
                outcome = self._window[0].outcome if self._window else None
                if outcome is not None:
                    self._window.popleft()
                    yield outcome
                elif self._window and not self._has_room():
                    self._wait()
        finally:
            for slot in self._window:
                if slot.call is not None:
                    slot.call.cancel()

    def _has_room(self) -> bool:
        return (
            self._rows is not None
            and self._in_flight < self._allowed.limit
            and len(self._window) < self._allowed.limit * WINDOW_PER_REQUEST
            and self._bytes_in_flight < MAX_BYTES_IN_FLIGHT
        )

    def _read_one(self) -> None:
        assert self._rows is not None
        row = next(self._rows, None)
        if row is None:
            self._rows = None
            return
        slot = _Slot(self._next, row.id)
        self._next += 1
        self._window.append(slot)
        if isinstance(row.battle, PreferenceError):
            slot.outcome = Failure(slot.number, slot.id, row.battle)
            return
        try:
            slot.request = self._transport.request(row.battle, str(slot.number))
        except BattleError as error:
            slot.outcome = Failure(slot.number, slot.id, error)
            return
        self._in_flight += 1
        self._bytes_in_flight += slot.request.bytes
        slot.first_sent_s = time.monotonic()
        self._send(slot, self._patience.deadline_s)

    def _send(self, slot: _Slot, time_left_s: float) -> None:
        assert slot.request is not None
        timeout_s = min(self._patience.timeout_s, time_left_s)
        slot.sent_s = time.monotonic()
        self._sent += 1
        slot.call = self._transport.send(slot.request, timeout_s, lambda: self._ended.put(slot))

    def _send_due_retries(self) -> None:
        while self._may_retry() and self._retries[0][0] <= time.monotonic():
            _, _, slot = heapq.heappop(self._retries)
            self._send(slot, max(0.001, slot.first_sent_s + self._patience.deadline_s - time.monotonic()))

    def _may_retry(self) -> bool:
        return bool(self._retries) and self._sent < self._allowed.limit

    def _wait(self) -> None:
        """Waits until a call ends or a retry is due."""
        timeout_s = max(0.0, self._retries[0][0] - time.monotonic()) if self._may_retry() else None
        try:
            self._settle(self._ended.get(timeout=timeout_s))
        except Empty:
            return

    def _settle_ended(self) -> None:
        while not self._ended.empty():
            self._settle(self._ended.get())

    def _settle(self, slot: _Slot) -> None:
        call, slot.call = slot.call, None
        assert call is not None
        self._sent -= 1
        try:
            answer = call.answer()
        except (UnavailableError, DeadlineError) as error:
            self._allowed.refused(slot.sent_s)
            self._retry_or_give_up(slot, error)
        except ServerError:
            raise
        except PreferenceError as error:
            if isinstance(error, PassingError) and not slot.passed:
                slot.passed = True
                self._retry_or_give_up(slot, error)
            else:
                self._finish(slot, Failure(slot.number, slot.id, error))
        else:
            ensemble = self._transport.ensemble
            self._finish(
                slot,
                Prediction(
                    slot.id,
                    ensemble.labels,
                    ensemble.members,
                    answer.probabilities,
                    answer.member_probabilities,
                    answer.token_counts,
                    answer.dropped_tokens,
                    answer.version,
                ),
            )
            self._last_answer_s = time.monotonic()
            self._allowed.answered(slot.sent_s)

    def _finish(self, slot: _Slot, outcome: Outcome) -> None:
        assert slot.request is not None
        self._in_flight -= 1
        self._bytes_in_flight -= slot.request.bytes
        slot.request = None
        slot.outcome = outcome

    def _retry_or_give_up(self, slot: _Slot, error: PreferenceError) -> None:
        """A row that times out while others are answered is at fault; otherwise the server is."""
        slot.failures += 1
        due_s = time.monotonic() + retry_delay_s(slot.failures)
        if due_s < slot.first_sent_s + self._patience.deadline_s:
            heapq.heappush(self._retries, (due_s, slot.number, slot))
            return
        given_up = type(error)(
            f"Row {slot.number} was sent {slot.failures} times in {self._patience.deadline_s:g} s, without an answer; "
            f"the last time: {error.message}",
            hint="Is the server overloaded, or away? `deadline_s` says how long a row is tried.",
        )
        if not isinstance(error, UnavailableError) and self._last_answer_s > slot.first_sent_s:
            self._finish(slot, Failure(slot.number, slot.id, given_up))
            return
        raise given_up
