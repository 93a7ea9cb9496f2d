"""What happens when the server is down, overloaded or slow."""

import threading
import time
from collections import Counter
from typing import Any

import grpc
import pytest

from preference_client import Failure, Scorer, pipeline
from preference_client.retries import LONGEST_DELAY_S, retry_delay_s
from preference_core.battles.battle import Battle
from preference_core.ensemble.combination import NOT_FINITE
from preference_core.errors import (
    DeadlineError,
    NonFiniteLogitsError,
    ScoringError,
    ServerError,
    UnavailableError,
    UserError,
)
from preference_core.triton.answers import INTERNAL_ERROR

pytestmark = pytest.mark.slow

BATTLE = Battle(("q",), ("a",), ("b",))


def test_an_overloaded_server_gets_every_row_again_until_it_takes_it(triton: Any, many: Any) -> None:
    sent: Counter[str] = Counter()

    def before(received: Any, context: Any) -> None:
        sent[received.id] += 1
        if sent[received.id] <= int(received.id) % 4:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")

    triton.before = before
    with Scorer(triton.url, max_in_flight=8) as scorer:
        outcomes = list(scorer.score_many(many(40)))
    assert [outcome.id for outcome in outcomes] == [f"id-{n}" for n in range(40)]
    assert not any(isinstance(outcome, Failure) for outcome in outcomes)
    assert {int(row): times for row, times in sent.items()} == {row: row % 4 + 1 for row in range(1, 41)}


def test_a_row_waiting_for_a_retry_keeps_its_place_among_those_under_way(triton: Any, many: Any) -> None:
    triton.before = lambda received, context: context.abort(grpc.StatusCode.UNAVAILABLE, "full")
    with (
        Scorer(triton.url, max_in_flight=3, deadline_s=0.5) as scorer,
        pytest.raises((UnavailableError, DeadlineError)),
    ):
        list(scorer.score_many(many(100)))
    assert triton.most_under_way <= 3
    assert triton.received < 3 * 8


def test_a_server_that_restarts_is_found_again(triton: Any, many: Any) -> None:
    port = int(triton.url.rpartition(":")[2])
    triton.before = lambda received, context: time.sleep(0.005)
    with Scorer(triton.url, max_in_flight=4, deadline_s=30) as scorer:
        ids = []
        for outcome in scorer.score_many(many(60)):
            assert not isinstance(outcome, Failure)
            ids.append(outcome.id)
            if len(ids) == 20:
                triton.stop()
                triton.start(port)
    assert ids == [f"id-{n}" for n in range(60)]


def test_a_server_that_stays_away_ends_the_run_at_the_deadline(triton: Any, many: Any) -> None:
    with Scorer(triton.url, deadline_s=1.0) as scorer:
        outcomes = scorer.score_many(many(5000))
        next(outcomes)
        triton.stop()
        started = time.monotonic()
        with pytest.raises(UnavailableError, match="without an answer") as error:
            for _ in outcomes:
                pass
    assert time.monotonic() - started < 5
    assert error.value.exit_code == 1


def test_what_the_server_refuses_is_not_sent_again(triton: Any) -> None:
    triton.before = lambda received, context: context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
    with Scorer(triton.url) as scorer:
        (outcome,) = scorer.score_many([BATTLE])
    assert isinstance(outcome, Failure)
    assert triton.received == 1


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'preference_ensemble' has no available versions"),
        (grpc.StatusCode.CANCELLED, "stopping"),
        (grpc.StatusCode.UNKNOWN, "Stream removed"),
        (grpc.StatusCode.ABORTED, "try again"),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
        (grpc.StatusCode.INTERNAL, "in ensemble 'x', Stub process 'llama_0_0' is not healthy."),
    ],
)
def test_a_server_between_stop_and_start_is_asked_again(triton: Any, many: Any, code: Any, details: str) -> None:
    sent: Counter[str] = Counter()

    def before(received: Any, context: Any) -> None:
        sent[received.id] += 1
        if sent[received.id] <= 2:
            context.abort(code, details)

    triton.before = before
    with Scorer(triton.url, max_in_flight=8) as scorer:
        assert not any(isinstance(outcome, Failure) for outcome in scorer.score_many(many(20)))


@pytest.mark.parametrize(
    "code",
    [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS],
)
def test_an_error_that_may_pass_is_worth_one_more_request(triton: Any, many: Any, code: Any) -> None:
    sent: Counter[str] = Counter()

    def before(received: Any, context: Any) -> None:
        sent[received.id] += 1
        if received.id == "3" or (received.id == "5" and sent["5"] == 1):
            context.abort(code, "no room")

    triton.before = before
    with Scorer(triton.url) as scorer:
        failed = [outcome.row for outcome in scorer.score_many(many(10)) if isinstance(outcome, Failure)]
    assert failed == [3]
    assert (sent["3"], sent["5"], sent["1"]) == (2, 2, 1)


@pytest.mark.parametrize(
    ("details", "kind"),
    [
        (
            f"in ensemble 'preference_ensemble', Member `gemma` {NOT_FINITE} (Its engine overflows)",
            NonFiniteLogitsError,
        ),
        (f"in ensemble 'preference_ensemble', {INTERNAL_ERROR}KeyError: 'x'", ScoringError),
    ],
)
def test_what_this_project_s_models_always_fail_at_is_not_sent_again(triton: Any, details: str, kind: Any) -> None:
    triton.before = lambda received, context: context.abort(grpc.StatusCode.INTERNAL, details)
    with Scorer(triton.url) as scorer:
        (outcome,) = scorer.score_many([BATTLE])
    assert isinstance(outcome, Failure)
    assert type(outcome.error) is kind
    assert triton.received == 1


def test_a_server_that_is_starting_is_waited_for(triton: Any) -> None:
    def starting(context: Any) -> None:
        if triton.described < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Not now: the server is starting")

    triton.describing = starting
    with Scorer(triton.url) as scorer:
        assert scorer.score(BATTLE).version == "1"
    assert triton.described == 3


@pytest.mark.parametrize("code", [grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND])
def test_a_server_that_will_take_no_request_at_all_ends_the_run(triton: Any, many: Any, code: Any) -> None:
    triton.before = lambda received, context: context.abort(code, "not for you")
    with Scorer(triton.url) as scorer, pytest.raises(ServerError, match="not for you"):
        list(scorer.score_many(many(10)))


def test_a_row_that_times_out_while_others_are_answered_fails_alone(triton: Any, many: Any) -> None:
    def before(received: Any, context: Any) -> None:
        if received.id == "3":
            time.sleep(1.5)

    triton.before = before
    with Scorer(triton.url, timeout_s=0.7, deadline_s=2.0, max_in_flight=2) as scorer:
        outcomes = list(scorer.score_many(many(30)))
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    assert [(failure.row, type(failure.error)) for failure in failed] == [(3, DeadlineError)]
    assert len(outcomes) == 30


def test_a_server_that_answers_nobody_in_time_ends_the_run(triton: Any, many: Any) -> None:
    release = threading.Event()
    triton.before = lambda received, context: release.wait(60)
    with Scorer(triton.url, timeout_s=0.1, deadline_s=0.4) as scorer, pytest.raises(DeadlineError, match=r"0\.4 s"):
        list(scorer.score_many(many(20)))
    release.set()


def test_the_pause_before_a_retry_doubles_up_to_a_limit_and_is_drawn_by_chance() -> None:
    for failures, longest in ((1, 0.1), (2, 0.2), (5, 1.6), (60, LONGEST_DELAY_S), (10_000, LONGEST_DELAY_S)):
        delays = [retry_delay_s(failures) for _ in range(50)]
        assert all(longest / 2 <= delay <= longest for delay in delays)
        assert len(set(delays)) > 1


@pytest.mark.parametrize("options", [{"timeout_s": 0}, {"deadline_s": float("nan")}, {"max_in_flight": 0}])
def test_limits_that_make_no_sense_are_refused(options: Any) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        Scorer("localhost:1", **options)


def test_large_rows_are_held_back_by_their_bytes(triton: Any, many: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MAX_BYTES_IN_FLIGHT", 100_000)
    triton.before = lambda received, context: time.sleep(0.01)
    rows = ({**battle, "response_a": "x" * 60_000} for battle in many(20))
    with Scorer(triton.url, max_in_flight=10) as scorer:
        assert sum(1 for _ in scorer.score_many(rows)) == 20
    assert triton.most_under_way <= 2
