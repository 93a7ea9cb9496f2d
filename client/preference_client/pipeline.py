"""Scores a stream of rows: many requests under way, results in the order of the rows, memory bounded.

Who iterates, a thread or a task of asyncio, owns all state; the connection's threads only put ended calls into a queue.
A row that waits for a retry keeps its place among those under way, so an overloaded server is sent less. It knows
nothing of files.
"""

import asyncio
import heapq
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from queue import Empty, Queue
from typing import Any

from preference_client.codec import Ensemble
from preference_client.connection import Request, check_traceparent
from preference_client.in_flight import InFlight
from preference_client.retries import Patience, retry_delay_s
from preference_client.rows import Failure, Outcome, Prediction, Row
from preference_client.servers import Call
from preference_client.transport import Transport, check_fork
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


class _Need(Enum):
    """What a pass waits for."""

    ROW = auto()
    ANSWER = auto()


class Pipeline:
    """One pass over rows, numbered from `first`, through one ensemble: `expected`, or that of the first answer.

    As many of them are under way as the server can use, at most `max_in_flight`; 4 times as many are in memory.
    """

    def __init__(
        self,
        transport: Transport,
        patience: Patience,
        max_in_flight: int,
        first: int = 1,
        expected: Ensemble | None = None,
        traceparent: str | None = None,
    ) -> None:
        check_traceparent(traceparent)
        self._traceparent = traceparent
        self._transport = transport
        self._patience = patience
        self._ensemble = expected
        self._wake: Callable[[], None] = lambda: None
        self._pid = os.getpid()
        self._reading = True
        self._allowed = InFlight(max_in_flight)
        self._window: deque[_Slot] = deque()
        #: No `SimpleQueue`: its `get` waits forever where a timeout passes at the wrong moment (CPython 3.11).
        self._ended: Queue[_Slot] = Queue()
        self._retries: list[tuple[float, int, _Slot]] = []
        self._next = first
        self._in_flight = 0
        self._sent = 0
        self._bytes_in_flight = 0
        self._last_answer_s = float("-inf")

    def outcomes(self, rows: Iterator[Row]) -> Iterator[Outcome]:
        """Yields one outcome per row, in order.

        Raises `ServerError` when the server stays away for the whole deadline of a row, refuses this client, or becomes
        another ensemble. Whatever ends the iteration, requests under way are cancelled.
        """
        try:
            for step in self._steps():
                if step is _Need.ROW:
                    self._take(next(rows, None))
                elif step is _Need.ANSWER:
                    check_fork(self._sent if self._pid != os.getpid() else 0)
                    with suppress(Empty):
                        self._settle(self._ended.get(timeout=self._pause_s()))
                else:
                    yield step
        finally:
            self._cancel()

    async def async_outcomes(self, rows: AsyncIterator[Row]) -> AsyncIterator[Outcome]:
        """The same for asyncio: answers are yielded while the next row is awaited."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        reading: asyncio.Future[Row | None] | None = None

        def wake() -> None:
            with suppress(RuntimeError):  # The loop is closed: nobody waits any more.
                loop.call_soon_threadsafe(ended.set)

        async def next_row() -> Row | None:
            return await anext(rows, None)

        self._wake = wake
        try:
            for step in self._steps():
                if isinstance(step, _Need):
                    if step is _Need.ROW and reading is None:
                        reading = asyncio.ensure_future(next_row())
                    waiting = asyncio.ensure_future(ended.wait())
                    happens: set[asyncio.Future[Any]] = {waiting} if reading is None else {waiting, reading}
                    await asyncio.wait(happens, timeout=self._pause_s(), return_when=asyncio.FIRST_COMPLETED)
                    waiting.cancel()
                    ended.clear()
                    if reading is not None and reading.done():
                        row, reading = reading.result(), None
                        self._take(row)
                else:
                    yield step
        finally:
            self._cancel()
            if reading is not None:
                reading.cancel()

    def _steps(self) -> Iterator[Outcome | _Need]:
        while self._reading or self._window:
            self._settle_ended()
            self._send_due_retries()
            if self._has_room():
                yield _Need.ROW
                self._settle_ended()
            outcome = self._window[0].outcome if self._window else None
            if outcome is not None:
                self._window.popleft()
                yield outcome
            elif self._window and not self._has_room():
                yield _Need.ANSWER

    def _cancel(self) -> None:
        for slot in self._window:
            if slot.call is not None:
                slot.call.cancel()

    def _has_room(self) -> bool:
        return (
            self._reading
            and self._in_flight < self._allowed.limit
            and len(self._window) < self._allowed.limit * WINDOW_PER_REQUEST
            and self._bytes_in_flight < MAX_BYTES_IN_FLIGHT
        )

    def _take(self, row: Row | None) -> None:
        if row is None:
            self._reading = False
            return
        slot = _Slot(self._next, row.id)
        self._next += 1
        self._window.append(slot)
        if isinstance(row.battle, PreferenceError):
            slot.outcome = Failure(slot.number, slot.id, row.battle)
            return
        try:
            slot.request = self._transport.request(row.battle, str(slot.number), self._traceparent)
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

        def ended() -> None:
            self._ended.put(slot)
            self._wake()

        slot.call = self._transport.send(slot.request, timeout_s, ended)

    def _send_due_retries(self) -> None:
        while self._may_retry() and self._retries[0][0] <= time.monotonic():
            _, _, slot = heapq.heappop(self._retries)
            self._send(slot, max(0.001, slot.first_sent_s + self._patience.deadline_s - time.monotonic()))

    def _may_retry(self) -> bool:
        return bool(self._retries) and self._sent < self._allowed.limit

    def _pause_s(self) -> float | None:
        """Seconds until a retry is due; None if only an answer can change anything."""
        return max(0.0, self._retries[0][0] - time.monotonic()) if self._may_retry() else None

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
            self._ensemble = self._ensemble or call.ensemble
            if call.ensemble != self._ensemble:
                raise ServerError(
                    f"Row `{slot.id}` was answered by {call.ensemble}, those before by {self._ensemble}",
                    hint="Give the server its repository back, or score all rows again.",
                )
            self._finish(slot, Prediction(slot.id, call.ensemble, *answer))
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
