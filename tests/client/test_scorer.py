"""Scoring through the library, against a real gRPC server."""

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import grpc
import numpy as np
import pytest

from preference_client import Failure, Prediction, Row, Scorer
from preference_client.connection import Request
from preference_client.transport import Transport
from preference_core.battles.battle import Battle
from preference_core.errors import (
    ArtefactError,
    BattleError,
    CombinationError,
    NonFiniteLogitsError,
    RefusedError,
    ScoringError,
    ServerError,
    UnavailableError,
    UserError,
)


def test_one_battle_is_sent_as_utf8_turns_of_shape_one_by_turns(triton: Any, expected: Any) -> None:
    battle = Battle(("wie geht's? ü", "and now?"), ("gut 🙂", ""), ("no", "never"))
    triton.dropped = 2
    with Scorer(triton.url) as scorer:
        prediction = scorer.score(battle)
    assert triton.last.prompt == battle.prompt
    assert triton.last.response_a == battle.response_a
    assert triton.last.shapes == {"prompt": (1, 2), "response_a": (1, 2), "response_b": (1, 2)}
    assert triton.last.model == "preference_ensemble"
    np.testing.assert_array_equal(prediction.probabilities, expected("wie geht's? ü"))
    assert prediction.member_probabilities.shape == (2, 3)
    assert prediction.token_counts.tolist() == [21, 21]
    assert prediction.dropped_tokens.tolist() == [[2, 2, 2], [2, 2, 2]]
    assert prediction.winner == prediction.labels[int(np.argmax(prediction.probabilities))]


def test_the_symmetric_ensemble_is_asked_when_wished(triton: Any) -> None:
    with Scorer(triton.url, symmetric=True) as scorer:
        scorer.score(Battle(("q",), ("a",), ("b",)))
    assert triton.last.model == "preference_ensemble_symmetric"


def test_labels_and_members_come_from_the_server(triton: Any, expected: Any) -> None:
    triton.parameters = {"labels": "model_a,model_b", "members": "qwen"}
    with Scorer(triton.url) as scorer:
        assert (scorer.labels, scorer.members) == (("model_a", "model_b"), ("qwen",))
        prediction = scorer.score(Battle(("q",), ("a",), ("b",)))
    np.testing.assert_array_equal(prediction.probabilities, expected("q", 2))
    assert prediction.member_probabilities.shape == (1, 2)


def test_weights_are_sent_normalised_in_the_members_order(triton: Any) -> None:
    with Scorer(triton.url, weights={"llama": 3, "gemma": 1}) as scorer:
        scorer.score(Battle(("q",), ("a",), ("b",)))
    assert triton.last.weights == (0.25, 0.75)
    assert triton.last.shapes["weights"] == (1, 2)


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ({"gemma": 1}, "leave out the member `llama`"),
        ({"gemma": 1, "llama": 1, "lama": 1}, "`lama`"),
        ({"gemma": -1, "llama": 1}, "-1"),
        ({"gemma": 0, "llama": 0}, "above zero"),
        ({"gemma": float("nan"), "llama": 1}, "nan"),
    ],
)
def test_unusable_weights_are_refused_before_anything_is_sent(triton: Any, weights: Any, named: str) -> None:
    with pytest.raises(CombinationError, match=named):
        Scorer(triton.url, weights=weights)
    assert triton.received == 0


def test_results_come_in_order_when_answers_do_not(triton: Any, many: Any, expected: Any) -> None:
    triton.before = lambda received, context: time.sleep(0.02 if int(received.id) % 7 == 0 else 0)
    with Scorer(triton.url, max_in_flight=16) as scorer:
        outcomes = list(scorer.score_many(many(300)))
    assert [outcome.id for outcome in outcomes] == [f"id-{n}" for n in range(300)]
    for n, outcome in enumerate(outcomes):
        assert isinstance(outcome, Prediction)
        np.testing.assert_array_equal(outcome.probabilities, expected(f"prompt {n}"))


def test_never_more_requests_are_under_way_than_allowed(triton: Any, many: Any) -> None:
    together = threading.Barrier(5)
    triton.before = lambda received, context: together.wait(60)
    with Scorer(triton.url, max_in_flight=5) as scorer:
        assert sum(1 for _ in scorer.score_many(many(100))) == 100
    assert triton.most_under_way == 5


@pytest.mark.slow
def test_one_slow_row_does_not_let_the_reading_run_ahead(triton: Any, many: Any) -> None:
    release = threading.Event()
    timer = threading.Timer(0.3, release.set)
    read = itertools.count()

    def counted() -> Iterator[dict[str, str]]:
        for battle in many(1000):
            next(read)
            yield battle

    def before(received: Any, context: Any) -> None:
        if received.id == "1":
            release.wait(60)
        if received.id == "16":
            timer.start()

    triton.before = before
    with Scorer(triton.url, max_in_flight=4) as scorer:
        outcomes = scorer.score_many(counted())
        assert next(outcomes).id == "id-0"
        assert triton.received == 16
        assert next(read) == 16
        assert sum(1 for _ in outcomes) == 999
        timer.join()


def test_nothing_is_read_before_the_first_result_is_asked_for(triton: Any) -> None:
    def never() -> Iterator[Battle]:
        raise AssertionError("read too early")
        yield

    with Scorer(triton.url) as scorer:
        scorer.score_many(never())


def test_a_result_is_yielded_although_the_next_row_has_not_been_read_to_the_window(triton: Any, many: Any) -> None:
    read = []

    def slowly() -> Iterator[dict[str, str]]:
        for battle in many(200):
            read.append(battle)
            yield battle
            time.sleep(0.05)

    with Scorer(triton.url, max_in_flight=64) as scorer:
        outcomes = scorer.score_many(slowly())
        next(outcomes)
        assert len(read) < 64
        outcomes.close()


def test_bad_rows_become_failures_in_their_place(triton: Any, many: Any, expected: Any) -> None:
    def before(received: Any, context: Any) -> None:
        if received.prompt[0] == "prompt 3":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "`prompt` has 3 turns")
        if received.prompt[0] == "prompt 4":
            context.abort(grpc.StatusCode.INTERNAL, "Member `gemma` returned logits that are not finite")

    triton.before = before
    rows: list[Any] = list(many(8))
    rows[1]["prompt"] = "lone \ud800 surrogate"
    rows[5] = Row("five", UserError("Line 7 has 2 columns"))
    rows[6] = Battle(("ok",), ("\udfff",), ("b",))
    with Scorer(triton.url) as scorer:
        outcomes = list(scorer.score_many(rows))
    failures = {o.row: (o.id, type(o.error)) for o in outcomes if isinstance(o, Failure)}
    assert failures == {
        2: ("id-1", BattleError),
        4: ("id-3", RefusedError),
        5: ("id-4", NonFiniteLogitsError),
        6: ("five", UserError),
        7: ("7", BattleError),
    }
    for n in (0, 2, 7):
        np.testing.assert_array_equal(outcomes[n].probabilities, expected(f"prompt {n}"))


def test_unreadable_characters_are_replaced_when_wished(triton: Any) -> None:
    with Scorer(triton.url, invalid_text="replace") as scorer:
        scorer.score({"prompt": "a\ud800b\0", "response_a": "x", "response_b": "y"})
    assert triton.last.prompt == ("a\ufffdb\ufffd",)


def test_score_raises_what_a_stream_would_yield_as_a_failure(triton: Any) -> None:
    triton.before = lambda received, context: context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
    with Scorer(triton.url) as scorer, pytest.raises(RefusedError, match="no"):
        scorer.score(Battle(("q",), ("a",), ("b",)))


def test_ten_megabytes_of_text_in_one_battle_get_there(triton: Any) -> None:
    with Scorer(triton.url) as scorer:
        scorer.score(Battle(("ä" * 5_000_000,), ("a",), ("b",)))
    assert len(triton.last.prompt[0]) == 5_000_000


def _spoil(values: np.ndarray) -> Any:
    def change(response: Any) -> None:
        index = [output.name for output in response.outputs].index("probabilities")
        response.raw_output_contents[index] = values.astype("<f4").tobytes()

    return change


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.array([np.nan, 0.5, 0.5]), NonFiniteLogitsError),
        (np.array([np.inf, 0.5, 0.5]), NonFiniteLogitsError),
        (np.array([0.5, 0.5, 0.5]), ScoringError),
        (np.array([1.5, -0.5, 0.0]), ScoringError),
        (np.array([0.5, 0.5]), ScoringError),
    ],
)
def test_an_answer_that_is_no_prediction_is_a_failure(triton: Any, values: np.ndarray, kind: type[Exception]) -> None:
    triton.change = _spoil(values)
    with Scorer(triton.url) as scorer, pytest.raises(kind):
        scorer.score(Battle(("q",), ("a",), ("b",)))


def test_an_answer_without_a_tensor_names_it(triton: Any) -> None:
    def change(response: Any) -> None:
        del response.outputs[0], response.raw_output_contents[0]

    triton.change = change
    with Scorer(triton.url) as scorer, pytest.raises(ScoringError, match="`dropped_tokens`"):
        scorer.score(Battle(("q",), ("a",), ("b",)))


def test_no_server_is_told_at_once_with_a_hint(triton: Any) -> None:
    triton.stop()
    started = time.monotonic()
    with pytest.raises(UnavailableError) as error:
        Scorer(triton.url)
    assert time.monotonic() - started < 3
    assert "make serve" in str(error.value.hint)
    assert triton.url in error.value.message


def test_a_server_without_the_ensemble_is_named_as_such(triton: Any) -> None:
    triton.models = set()
    with pytest.raises(ServerError, match="has no model `preference_ensemble`"):
        Scorer(triton.url)


def test_a_repository_of_somebody_else_is_refused(triton: Any) -> None:
    triton.parameters = {"labels": "a,b"}
    with pytest.raises(ArtefactError, match="no parameter `members`"):
        Scorer(triton.url)


def test_an_address_that_is_a_web_address_is_refused() -> None:
    with pytest.raises(UserError, match="host:port"):
        Scorer("http://localhost:8001")


def test_leaving_the_loop_cancels_what_is_under_way(triton: Any, many: Any) -> None:
    full = threading.Event()
    ended = threading.Event()

    def before(received: Any, context: Any) -> None:
        if triton.received == 8:
            full.set()
        if received.id == "1":
            full.wait(20)
        else:
            context.add_callback(ended.set)
            ended.wait(20)

    triton.before = before
    with Scorer(triton.url, max_in_flight=8) as scorer:
        outcomes = scorer.score_many(many(100))
        next(outcomes)
        started = time.monotonic()
        outcomes.close()
        assert ended.wait(5)
        assert time.monotonic() - started < 5
    assert triton.received <= 9


def test_closing_in_another_thread_ends_the_iteration(triton: Any, many: Any) -> None:
    release = threading.Event()
    triton.before = lambda received, context: release.wait(20)
    scorer = Scorer(triton.url)
    timer = threading.Timer(0.3, scorer.close)
    timer.start()
    started = time.monotonic()
    with pytest.raises(ServerError, match="closed"):
        list(scorer.score_many(many(100)))
    assert time.monotonic() - started < 5
    release.set()
    timer.join()


def test_each_call_sends_its_own_trace_context_and_only_if_it_has_one(
    triton: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEPARENT", f"00-{'f' * 32}-{'f' * 16}-01")
    seen: list[str | None] = []
    triton.before = lambda received, context: seen.append(dict(context.invocation_metadata()).get("traceparent"))
    contexts = [f"00-{digit * 32}-{digit * 16}-01" for digit in "12"]
    battle = {"prompt": "q", "response_a": "a", "response_b": "b"}
    with Scorer(triton.url) as scorer:
        scorer.score(battle, traceparent=contexts[0])
        scorer.score(battle)
        assert len(list(scorer.score_many([battle] * 2, traceparent=contexts[1]))) == 2
        for wrong in ("1", contexts[0].upper().replace("1", "A"), contexts[0] + "\n", f"01{contexts[0][2:]}"):
            with pytest.raises(UserError, match="The trace context is"):
                scorer.score(battle, traceparent=wrong)
    assert seen == [contexts[0], None, contexts[1], contexts[1]]


def test_a_request_that_cannot_be_put_into_bytes_fails_alone(triton: Any) -> None:
    transport = Transport([triton.url], "preference_ensemble")
    ended = threading.Event()
    call = transport.send(Request(message=None, bytes=0), 5.0, ended.set)
    assert ended.wait(5)
    with pytest.raises(ScoringError):
        call.answer()
    ended.clear()
    call = transport.send(transport.request(Battle(("q",), ("a",), ("b",)), "1"), 5.0, ended.set)
    assert ended.wait(5)
    assert call.answer()[0].shape == (3,)
    transport.close()
    with pytest.raises(ServerError, match="closed"):
        transport.send(transport.request(Battle(("q",), ("a",), ("b",)), "1"), 5.0, ended.set)


def test_threads_may_share_a_scorer(triton: Any, many: Any) -> None:
    results: dict[int, list[str]] = {}
    with Scorer(triton.url, max_in_flight=4) as scorer:

        def work(thread: int) -> None:
            results[thread] = [outcome.id for outcome in scorer.score_many(many(50))]

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {n: [f"id-{i}" for i in range(50)] for n in range(4)}


def test_the_loopback_is_reached_past_a_proxy(triton: Any, many: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for host in ("localhost", "127.0.0.1"):
        with Scorer(f"{host}:{triton.url.rpartition(':')[2]}") as scorer:
            assert sum(1 for _ in scorer.score_many(many(2))) == 2
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9") as caught:
        Scorer("elsewhere.invalid:8001")
    assert "no_proxy" in str(caught.value.hint)


@pytest.mark.slow
def test_each_kind_of_wrong_address_has_a_hint_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preference_client.connection.DESCRIBE_TIMEOUT_S", 2.0)

    class Silent(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Silent) as web, socket.create_server(("127.0.0.1", 0)) as mute:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        other = grpc.server(ThreadPoolExecutor(1))
        other_port = other.add_insecure_port("127.0.0.1:0")
        other.start()
        for port, hint in (
            (web.server_port, "does not speak gRPC"),
            (mute.getsockname()[1], "says nothing"),
            (other_port, "is not Triton"),
            (1, "make serve"),
        ):
            with pytest.raises(UnavailableError) as caught:
                Scorer(f"127.0.0.1:{port}")
            assert hint in str(caught.value.hint)
        other.stop(None)
        web.shutdown()


@pytest.mark.parametrize("url", ["localhost", "localhost:", "localhost:grpc", "localhost:99999", "http://localhost:1"])
def test_an_address_without_a_port_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="expected host:port"):
        Scorer(url)
