"""How many requests are under way, against servers that are simulated."""

import pytest

from preference_client.in_flight import FIRST, MAX, InFlight


class Server:
    """Answers so many requests per second, each after `fastest_s` at least; on a clock of its own."""

    def __init__(self, per_s: float, fastest_s: float, most: int = MAX) -> None:
        self.per_s, self.fastest_s, self.now_s = per_s, fastest_s, 0.0
        self.in_flight = InFlight(most, clock=lambda: self.now_s)

    def run(self, rounds: int) -> int:
        """The limit after some rounds, in each of which the whole limit is sent and answered."""
        for _ in range(rounds):
            sent_s, count = self.now_s, self.in_flight.limit
            self.now_s += max(self.fastest_s, count / self.per_s)
            for _ in range(count):
                self.in_flight.answered(sent_s)
        return self.in_flight.limit


@pytest.mark.parametrize(("per_s", "fastest_s"), [(200, 0.01), (10, 0.5), (5000, 0.05), (2000, 0.2)])
def test_it_keeps_the_server_busy_and_lets_few_wait(per_s: float, fastest_s: float) -> None:
    limit = Server(per_s, fastest_s).run(100)
    busy = per_s * fastest_s
    assert busy <= limit <= busy + 110


def test_a_server_that_gets_slower_gets_less_at_a_time() -> None:
    server = Server(5000, 0.05)
    before = server.run(100)
    server.per_s = 100
    assert server.run(20) < before / 2


def test_refusals_of_one_moment_halve_it_once_and_it_recovers_slowly() -> None:
    server = Server(5000, 0.05)
    before = server.run(100)
    sent_s = server.now_s
    server.now_s += 1
    for _ in range(50):
        server.in_flight.refused(sent_s)
    assert server.in_flight.limit == before // 2
    assert server.run(3) <= before // 2 + 3


def test_a_server_that_refuses_everything_is_sent_one_at_a_time() -> None:
    server = Server(100, 0.01)
    for _ in range(50):
        server.in_flight.refused(server.now_s)
        server.now_s += 1
    assert server.in_flight.limit == 1
    assert server.run(60) > FIRST


@pytest.mark.parametrize("most", [1, 3, 20])
def test_it_never_exceeds_what_was_asked_for(most: int) -> None:
    assert Server(5000, 0.05, most).run(50) == most
