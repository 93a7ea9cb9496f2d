"""Several servers, connections that go silent, and processes that are forked, against real gRPC servers."""

import multiprocessing
import queue
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from preference_client import Failure, Scorer, connection
from preference_core.battles.battle import Battle
from preference_core.errors import ServerError, UnavailableError, UserError

pytestmark = pytest.mark.slow

BATTLE = Battle(("q",), ("a",), ("b",))
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def another(triton: Any) -> Iterator[Callable[..., Any]]:
    """Starts further servers like `triton`, on an address and port if given."""
    started = []

    def start(address: str = "127.0.0.1:0") -> Any:
        started.append(type(triton)())
        started[-1].start(address=address)
        return started[-1]

    yield start
    for server in started:
        server.stop()


def in_child(work: Callable[[], Any]) -> str:
    """What `work` returns, or raises, in a forked process; "nothing" if it takes half a minute."""
    answers = FORK.Queue()

    def run() -> None:
        try:
            answers.put(str(work()))
        except BaseException as error:
            answers.put(f"{type(error).__name__}: {error}")

    child = FORK.Process(target=run)
    child.start()
    try:
        return str(answers.get(timeout=30))
    except queue.Empty:
        return "nothing"
    finally:
        child.kill()
        child.join()


def test_a_scorer_made_before_a_fork_scores_in_both_processes(triton: Any, many: Any) -> None:
    with Scorer(triton.url) as scorer:
        scorer.score(BATTLE)
        for _ in range(3):
            assert in_child(lambda: scorer.score(BATTLE).winner) == scorer.score(BATTLE).winner
        assert in_child(lambda: [outcome.id for outcome in scorer.score_many(many(20))][-1]) == "id-19"
        assert scorer.score(BATTLE).version == "1"
    assert "closed" in in_child(lambda: scorer.score(BATTLE))


def test_a_scorer_used_only_after_the_fork_scores_in_every_worker_of_a_pool(triton: Any) -> None:
    with Scorer(triton.url) as scorer:
        global _shared
        _shared = scorer
        with FORK.Pool(3) as pool:
            assert pool.map_async(_scored, range(12)).get(timeout=60) == ["1"] * 12
    assert triton.received == 12


def _scored(number: int) -> str:
    return str(_shared.score(BATTLE).version)


_shared: Any = None


def test_a_fork_with_requests_under_way_is_an_error_at_once(triton: Any, many: Any) -> None:
    release = threading.Event()
    triton.before = lambda received, context: received.id == "1" or release.wait(60)
    with Scorer(triton.url, max_in_flight=8) as scorer:
        outcomes = scorer.score_many(many(30))
        next(outcomes)
        began = time.monotonic()
        for work in (lambda: scorer.score(BATTLE), lambda: next(outcomes)):
            assert re.match("ServerError: This process was forked while [78] requests were under way", in_child(work))
        assert time.monotonic() - began < 10
        release.set()
        assert sum(1 for _ in outcomes) == 29


class Proxy:
    """Passes TCP on to `url` until it falls silent: then every connection stays open and nothing comes through."""

    def __init__(self, url: str) -> None:
        self.silent: list[threading.Event] = []
        self._sockets: list[socket.socket] = []
        self.connections = 0
        self._target = url.rpartition(":")[2]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def fall_silent(self) -> None:
        """Connections that exist now carry nothing any more; new ones do."""
        for connection_silent in self.silent:
            connection_silent.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                server = socket.create_connection(("127.0.0.1", int(self._target)))
                self._sockets += [client, server]
                silent = threading.Event()
                self.silent.append(silent)
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=(*pair, silent), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, silent: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not silent.is_set():
                    target.sendall(data)

    def close(self) -> None:
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def proxy(triton: Any) -> Iterator[Proxy]:
    made = Proxy(triton.url)
    yield made
    made.close()


def test_a_connection_whose_packets_are_dropped_is_noticed_and_replaced(triton: Any, many: Any, proxy: Proxy) -> None:
    with Scorer(proxy.url, max_in_flight=8) as scorer:
        outcomes = scorer.score_many(many(200))
        first = [next(outcomes) for _ in range(20)]
        proxy.fall_silent()
        began = time.monotonic()
        rest = list(outcomes)
        took_s = time.monotonic() - began
    assert [outcome.id for outcome in first + rest] == [f"id-{n}" for n in range(200)]
    assert not any(isinstance(outcome, Failure) for outcome in rest)
    assert took_s < 25, f"{took_s:.1f} s"
    assert proxy.connections >= 2


def test_a_single_call_also_outlives_a_silent_connection(triton: Any, proxy: Proxy) -> None:
    with Scorer(proxy.url) as scorer:
        scorer.score(BATTLE)
        proxy.fall_silent()
        began = time.monotonic()
        assert scorer.score(BATTLE).version == "1"
        assert time.monotonic() - began < 25


def test_a_slow_answer_is_waited_for_however_often_the_server_is_asked_for_a_sign_of_life(
    triton: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "KEEPALIVE_MS", 500)
    triton.before = lambda received, context: time.sleep(8)
    with Scorer(triton.url, deadline_s=20) as scorer:
        assert scorer.score(BATTLE).version == "1"
    assert triton.received == 1


def test_several_servers_are_used_in_turn(triton: Any, another: Any, many: Any) -> None:
    other = another()
    with Scorer([triton.url, other.url]) as scorer:
        assert sum(1 for _ in scorer.score_many(many(100))) == 100
    assert triton.received == other.received == 50


def test_a_server_that_is_dead_from_the_start_is_passed_over_and_named(triton: Any, many: Any) -> None:
    with Scorer(["127.0.0.1:1", triton.url]) as scorer:
        assert not any(isinstance(outcome, Failure) for outcome in scorer.score_many(many(50)))
        assert list(scorer.away) == ["127.0.0.1:1"]
    assert triton.received == 50


def test_a_server_that_dies_is_passed_over_and_joins_again_when_it_is_back(
    triton: Any, another: Any, many: Any
) -> None:
    other = another()
    other.before = triton.before = lambda received, context: time.sleep(0.002)
    port = other.url.rpartition(":")[2]
    with Scorer([triton.url, other.url], max_in_flight=8) as scorer:
        outcomes = []
        for number, outcome in enumerate(scorer.score_many(many(3000))):
            outcomes.append(outcome)
            if number == 200:
                other.stop()
            if number == 1000:
                assert scorer.away, "a dead server is not known as such"
                while_dead = other.received
                other.start(address=f"127.0.0.1:{port}")
    assert [outcome.id for outcome in outcomes] == [f"id-{n}" for n in range(3000)]
    assert not any(isinstance(outcome, Failure) for outcome in outcomes)
    assert other.received > while_dead + 100


def test_servers_that_serve_different_things_are_refused(triton: Any, another: Any) -> None:
    other = another()
    other.parameters = {**other.parameters, "content": "f" * 64}
    with pytest.raises(ServerError, match=r"content ffffffffffff") as caught:
        Scorer([triton.url, other.url])
    assert "same repository everywhere" in str(caught.value.hint)


def test_a_server_that_comes_back_with_something_else_is_left_out(triton: Any, another: Any, many: Any) -> None:
    other = another()
    port = other.url.rpartition(":")[2]
    triton.before = lambda received, context: time.sleep(0.002)
    with Scorer([triton.url, other.url], max_in_flight=8) as scorer:
        versions: Counter[str] = Counter()
        for number, outcome in enumerate(scorer.score_many(many(1500))):
            assert not isinstance(outcome, Failure)
            versions[outcome.version] += 1
            if number == 100:
                other.stop()
                other.version = "2"
                before = other.received
                other.start(address=f"127.0.0.1:{port}")
        assert versions == {"1": 1500}
        assert other.received == before
        assert "version 2" in scorer.away[other.url]


def test_a_scorer_that_lives_long_goes_on_with_a_new_version_and_says_so(triton: Any) -> None:
    port = int(triton.url.rpartition(":")[2])
    with Scorer(triton.url) as scorer:
        assert scorer.score(BATTLE).version == "1"
        triton.version = "2"
        assert scorer.score(BATTLE).version == "2"
        triton.stop()
        triton.parameters = {**triton.parameters, "labels": "winner_tie,winner_model_a,winner_model_b"}
        triton.start(port)
        with pytest.raises(
            ServerError, match="with other labels: winner_tie, winner_model_a, winner_model_b; they were"
        ):
            list(scorer.score_many([BATTLE] * 1000))


def test_all_addresses_of_a_name_are_used(triton: Any, another: Any, many: Any) -> None:
    other = another()
    ports = [server.url.rpartition(":")[2] for server in (triton, other)]
    with Scorer(f"ipv4:127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}") as scorer:  # As gRPC sees a name with two addresses.
        deadline = time.monotonic() + 30
        while not (triton.received and other.received) and time.monotonic() < deadline:
            assert sum(1 for _ in scorer.score_many(many(10))) == 10
        survivors = scorer.score_many(many(300))
        first = [next(survivors) for _ in range(20)]
        other.stop()
        assert [outcome.id for outcome in (*first, *survivors)] == [f"id-{n}" for n in range(300)]
    assert triton.received > 150


def test_no_server_at_all_is_told_at_once_with_the_first_reason() -> None:
    began = time.monotonic()
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:[12]"):
        Scorer(["127.0.0.1:1", "127.0.0.1:2"])
    assert time.monotonic() - began < 5
    with pytest.raises(UserError, match="host:port"):
        Scorer([])


def test_a_silent_address_does_not_keep_the_start_waiting(triton: Any, many: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        began = time.monotonic()
        with Scorer([f"127.0.0.1:{mute.getsockname()[1]}", triton.url]) as scorer:
            assert time.monotonic() - began < 5
            assert sum(1 for _ in scorer.score_many(many(50))) == 50


def test_the_command_takes_several_addresses_and_names_the_one_that_is_away(
    triton: Any, another: Any, run: Any, battles_csv: Any, tmp_path: Path
) -> None:
    other = another()
    addresses = ("--url", triton.url, "--url", "127.0.0.1:1", "--url", other.url)
    result = run(battles_csv(60), "-o", tmp_path / "p.csv", *addresses)
    assert result.exit_code == 0, result.stderr
    assert "warning: No ensemble `preference_ensemble` can be reached on 127.0.0.1:1" in result.stderr
    assert (triton.received, other.received) == (30, 30)
    by_variable = run(battles_csv(60), "-o", tmp_path / "p.csv", PREFERENCE_URL=f"{triton.url} {other.url}")
    assert by_variable.exit_code == 0, by_variable.stderr
    assert (triton.received, other.received) == (60, 60)


def test_an_overloaded_server_stays_connected(triton: Any, many: Any) -> None:
    refused: Counter[str] = Counter()

    def before(received: Any, context: Any) -> None:
        refused[received.id] += 1
        if refused[received.id] == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Overloaded: 32 battles are under way")

    triton.before = before
    with Scorer(triton.url) as scorer:
        assert not any(isinstance(outcome, Failure) for outcome in scorer.score_many(many(20)))
    assert triton.described == 1
