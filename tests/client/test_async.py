"""Scoring from asyncio, against a real gRPC server: the same checks, order, retries and limits as without."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import numpy as np
import pytest

from preference_client import AsyncScorer, Failure, Scorer
from preference_core.battles.battle import Battle
from preference_core.errors import BattleError, RefusedError, ServerError, UnavailableError, UserError

BATTLE = Battle(("q",), ("a",), ("b",))


def test_it_scores_as_the_scorer_does(triton: Any, many: Any) -> None:
    async def scored() -> Any:
        async with AsyncScorer(triton.url, weights={"gemma": 1, "llama": 3}) as scorer:
            return (
                scorer.labels,
                await scorer.score(BATTLE),
                [outcome async for outcome in scorer.score_many(many(300))],
            )

    labels, one, stream = asyncio.run(scored())
    with Scorer(triton.url) as scorer:
        assert labels == scorer.labels
        np.testing.assert_array_equal(one.probabilities, scorer.score(BATTLE).probabilities)
        expected = list(scorer.score_many(many(300)))
    assert triton.last.weights is None
    assert [outcome.id for outcome in stream] == [outcome.id for outcome in expected]
    for outcome, other in zip(stream, expected, strict=True):
        np.testing.assert_array_equal(outcome.probabilities, other.probabilities)


def test_tasks_that_share_one_send_their_own_trace_contexts(triton: Any) -> None:
    seen: set[str | None] = set()
    triton.before = lambda received, context: seen.add(dict(context.invocation_metadata()).get("traceparent"))
    contexts = [f"00-{number:032x}-{number:016x}-01" for number in range(1, 9)]

    async def scored() -> None:
        async with AsyncScorer(triton.url) as scorer:
            await asyncio.gather(*(scorer.score(BATTLE, traceparent=context) for context in [*contexts, None]))

    asyncio.run(scored())
    assert seen == {*contexts, None}


def test_many_tasks_share_one_and_the_loop_goes_on_meanwhile(triton: Any) -> None:
    triton.before = lambda received, context: time.sleep(0.3)

    async def scored() -> tuple[int, float]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        async with AsyncScorer(triton.url) as scorer:
            ticking = asyncio.create_task(tick())
            began = time.monotonic()
            await asyncio.gather(*(scorer.score(BATTLE) for _ in range(20)))
            took_s = time.monotonic() - began
            ticking.cancel()
        return ticks, took_s

    ticks, took_s = asyncio.run(scored())
    assert took_s < 3
    assert ticks > 5


def test_an_answer_is_yielded_while_the_next_battle_is_awaited(triton: Any) -> None:
    async def scored() -> list[str]:
        answered = asyncio.Event()

        async def conversation() -> AsyncIterator[dict[str, str]]:
            yield {"id": "first", "prompt": "q", "response_a": "a", "response_b": "b"}
            await asyncio.wait_for(answered.wait(), 20)
            yield {"id": "second", "prompt": "q", "response_a": "a", "response_b": "b"}

        ids = []
        async with AsyncScorer(triton.url) as scorer:
            async for outcome in scorer.score_many(conversation()):
                ids.append(outcome.id)
                answered.set()
        return ids

    assert asyncio.run(scored()) == ["first", "second"]


@pytest.mark.slow
def test_failures_and_retries_are_those_of_the_scorer(triton: Any, many: Any) -> None:
    sent: Counter[str] = Counter()

    def before(received: Any, context: Any) -> None:
        sent[received.id] += 1
        if received.id == "4":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
        if sent[received.id] <= int(received.id) % 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")

    triton.before = before
    rows: list[Any] = list(many(30))
    rows[1]["prompt"] = "lone \ud800 surrogate"

    async def scored() -> list[Any]:
        async with AsyncScorer(triton.url, max_in_flight=4) as scorer:
            return [outcome async for outcome in scorer.score_many(rows)]

    outcomes = asyncio.run(scored())
    failed = {outcome.row: type(outcome.error) for outcome in outcomes if isinstance(outcome, Failure)}
    assert failed == {2: BattleError, 4: RefusedError}
    assert [outcome.id for outcome in outcomes] == [f"id-{n}" for n in range(30)]
    assert triton.most_under_way <= 4


def test_leaving_the_loop_and_cancelling_a_task_cancel_what_is_under_way(triton: Any, many: Any) -> None:
    cancelled = Counter[str]()

    def before(received: Any, context: Any) -> None:
        if received.id != "1" or received.prompt == ("slow",):
            context.add_callback(lambda: cancelled.update([received.prompt[0]]))
            time.sleep(1)

    triton.before = before

    async def left() -> None:
        async with AsyncScorer(triton.url, max_in_flight=4) as scorer:
            async with aclosing(scorer.score_many(many(100))) as outcomes:
                async for _ in outcomes:
                    break
            task = asyncio.create_task(scorer.score(Battle(("slow",), ("a",), ("b",))))
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.5)

    asyncio.run(left())
    assert triton.received <= 6
    assert cancelled["slow"] == 1


def test_errors_of_the_connection_and_of_the_source_come_out(triton: Any) -> None:
    async def broken() -> AsyncIterator[Battle]:
        yield BATTLE
        raise UserError("the source is broken")

    async def scored() -> None:
        with pytest.raises(ServerError, match="not connected"):
            await AsyncScorer(triton.url).score(BATTLE)
        async with AsyncScorer(triton.url) as scorer:
            with pytest.raises(UserError, match="source is broken"):
                [outcome async for outcome in scorer.score_many(broken())]
        with pytest.raises(ServerError, match="closed"):
            await scorer.score(BATTLE)
        triton.stop()
        with pytest.raises(UnavailableError):
            await AsyncScorer(triton.url).__aenter__()

    asyncio.run(scored())
