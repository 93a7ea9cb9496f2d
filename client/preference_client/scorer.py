"""`Scorer` and, for programs on asyncio, `AsyncScorer`: score one battle, or a stream of them, on a served ensemble.

They connect, validate and start; `pipeline` does the streaming and `transport` the talking, for both.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

from preference_client.codec import Ensemble
from preference_client.connection import Tls
from preference_client.in_flight import MAX
from preference_client.pipeline import Pipeline
from preference_client.retries import Patience
from preference_client.rows import Failure, Outcome, Prediction, Row, row_of
from preference_client.transport import Transport
from preference_core import tensors
from preference_core.battles.battle import Battle, InvalidText
from preference_core.errors import ServerError, UserError

DEFAULT_URL = "localhost:8001"

Item = Battle | Mapping[str, Any] | Row


class _Connected:
    """What both scorers are: options, a way to the ensemble, and what it says of itself."""

    _at_once = False

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
        *,
        symmetric: bool = False,
        weights: Mapping[str, float] | None = None,
        timeout_s: float = Patience.timeout_s,
        deadline_s: float = Patience.deadline_s,
        max_in_flight: int = MAX,
        invalid_text: InvalidText = "error",
        tls: Tls | None = None,
    ) -> None:
        """Connects; raises `ServerError` if no such ensemble answers on `url`, which is `host:port` of Triton's gRPC.

        Several addresses, also those of one name, must serve the same; those that are not away are used in turn.

        `symmetric` averages over both orders of the responses. `weights` (one per member) replace the configured ones.
        A request may take `timeout_s`, a battle with all its retries `deadline_s`. Each `score_many` finds how many
        requests under way the servers can use, and has at most `max_in_flight`. `invalid_text` says what happens to
        characters that no tokenizer reads: the battle fails, or U+FFFD takes their place.
        """
        if max_in_flight < 1:
            raise UserError(f"`max_in_flight` is {max_in_flight}, expected at least 1")
        self._max_in_flight = max_in_flight
        self._patience = Patience(timeout_s, deadline_s)
        self._invalid_text: InvalidText = invalid_text
        urls = (url,) if isinstance(url, str) else tuple(url)
        model = tensors.ENSEMBLE_SYMMETRIC if symmetric else tensors.ENSEMBLE
        self._connect = partial(Transport, urls, model, tls, weights, self._patience)
        self._connected = self._connect() if self._at_once else None

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of every `probabilities`."""
        return self.ensemble.labels

    @property
    def members(self) -> tuple[str, ...]:
        """The members, in the order of every `member_probabilities`."""
        return self.ensemble.members

    @property
    def ensemble(self) -> Ensemble:
        """Which ensemble answers now: its name, labels, members, version and content."""
        return self._transport.ensemble

    @property
    def away(self) -> Mapping[str, str]:
        """The addresses that are passed over now, each with the reason."""
        return self._transport.away

    @property
    def _transport(self) -> Transport:
        if self._connected is None:
            raise ServerError("The scorer is not connected", hint="Use it in `async with`.")
        return self._connected

    def _pipeline(self, first_row: int, expected: Ensemble | None, traceparent: str | None) -> Pipeline:
        return Pipeline(self._transport, self._patience, self._max_in_flight, first_row, expected, traceparent)


class Scorer(_Connected):
    """A connection to a served ensemble; use it in a `with` statement. It may be shared between threads.

    with Scorer("localhost:8001") as scorer:
        print(scorer.score({"prompt": "Hi", "response_a": "Hello!", "response_b": "Go away."}).winner)

    In a forked process it opens a new connection, unless battles were under way at the fork: that is a `ServerError`.
    """

    _at_once = True

    def score(self, battle: Battle | Mapping[str, Any], traceparent: str | None = None) -> Prediction:
        """Scores one battle, given as such or as a mapping with `prompt`, `response_a`, `response_b` and perhaps `id`.

        The spans of a server that is traced join the W3C trace context `traceparent`. Raises `BattleError` or
        `RefusedError` if the battle is at fault, `SystemFailure` otherwise.
        """
        (outcome,) = self.score_many([battle], traceparent=traceparent)
        return _prediction(outcome)

    def score_many(
        self,
        battles: Iterable[Item],
        first_row: int = 1,
        expected: Ensemble | None = None,
        traceparent: str | None = None,
    ) -> Iterator[Outcome]:
        """Scores a stream of battles, lazily; yields one outcome per battle, in order; `first_row` numbers the first.

        A battle that cannot be scored becomes a `Failure` in its place. Raises `ServerError` when the server itself
        fails, or when the answers are not all of one ensemble (`expected`, if given). Close the iterator, or leave its
        loop and drop it, to cancel what is under way.
        """
        rows = (row_of(item, number, self._invalid_text) for number, item in enumerate(battles, first_row))
        return self._pipeline(first_row, expected, traceparent).outcomes(rows)

    def close(self) -> None:
        """Closes the connection. Iterations under way, in this or other threads, end with a `ServerError`."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AsyncScorer(_Connected):
    """`Scorer` for programs on asyncio; it connects in `async with`, and tasks may share it.

    async with AsyncScorer("localhost:8001") as scorer:
        print((await scorer.score({"prompt": "Hi", "response_a": "Hello!", "response_b": "Go away."})).winner)

    Errors, retries, order and limits are those of `Scorer`.
    """

    async def score(self, battle: Battle | Mapping[str, Any], traceparent: str | None = None) -> Prediction:
        """Scores one battle. A task that is cancelled cancels its request."""
        outcomes = [outcome async for outcome in self.score_many([battle], traceparent=traceparent)]
        return _prediction(outcomes[0])

    def score_many(
        self,
        battles: Iterable[Item] | AsyncIterable[Item],
        first_row: int = 1,
        expected: Ensemble | None = None,
        traceparent: str | None = None,
    ) -> AsyncIterator[Outcome]:
        """Scores a stream of battles, of which the next may be awaited; yields one outcome per battle, in order.

        Leave its loop inside `contextlib.aclosing` to cancel at once what is under way.
        """
        return self._pipeline(first_row, expected, traceparent).async_outcomes(self._rows(battles, first_row))

    async def _rows(self, battles: Iterable[Item] | AsyncIterable[Item], first_row: int) -> AsyncIterator[Row]:
        number = first_row
        async for item in battles if isinstance(battles, AsyncIterable) else _each(battles):
            yield row_of(item, number, self._invalid_text)
            number += 1

    async def close(self) -> None:
        """Closes the connection. Iterations under way end with a `ServerError`."""
        await asyncio.to_thread(self._transport.close)

    async def __aenter__(self) -> Self:
        self._connected = await asyncio.to_thread(self._connect)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()


async def _each(items: Iterable[Item]) -> AsyncIterator[Item]:
    for item in items:
        yield item


def _prediction(outcome: Outcome) -> Prediction:
    if isinstance(outcome, Failure):
        raise outcome.error
    return outcome
