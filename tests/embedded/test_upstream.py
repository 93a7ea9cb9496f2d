"""When a server that answers slowly counts as dead, and when it does not."""

import pytest

from preference_embedded.door import upstream
from preference_embedded.door.upstream import LOST_ANSWERS, LOST_FACTOR, Pulse


@pytest.fixture
def clock(monkeypatch):
    """Sets the time: `clock(12.0)`."""
    now = [0.0]
    monkeypatch.setattr(upstream.time, "monotonic", lambda: now[0])

    def set_to(seconds):
        now[0] = seconds
        return seconds

    return set_to


def answer(pulse, serial):
    pulse.waiting.pop(serial)
    pulse.has_answered()


def test_a_battle_behind_those_of_the_other_ensemble_is_no_sign_of_death(clock):
    """Real models take seconds for a battle in both orders, and a probe of the other ensemble waits behind them all."""
    pulse = Pulse(silence_s=5.0, answered=0.0)
    for serial in range(32):
        pulse.sent(serial, "preference_ensemble_symmetric")
    pulse.sent(32, "preference_ensemble")
    for serial in range(32):
        assert pulse.stalled(clock(4.0 * (serial + 1))) is None
        answer(pulse, serial)
    assert pulse.stalled(clock(132.9)) is None
    assert pulse.stalled(clock(133.1)) == "`preference_ensemble` has answered nothing for 5.1 s"


def test_silence_counts_from_when_a_battle_was_sent(clock):
    pulse = Pulse(silence_s=5.0, answered=0.0)
    assert pulse.stalled(clock(100.0)) is None
    pulse.sent(0, "preference_ensemble")
    assert pulse.stalled(clock(104.0)) is None
    assert pulse.stalled(clock(106.0)) == "`preference_ensemble` has answered nothing for 6.0 s"


def test_a_battle_that_is_passed_over_again_and_again_is_lost(clock):
    pulse = Pulse(silence_s=5.0, answered=0.0)
    pulse.sent(0, "preference_ensemble")
    for serial in range(1, LOST_ANSWERS + 2):
        pulse.sent(serial, "preference_ensemble_symmetric")
        assert pulse.stalled(clock(4.9 * serial)) is None
        answer(pulse, serial)
    age = clock(5.0 * LOST_FACTOR + 4.0)
    assert pulse.stalled(age) == f"`preference_ensemble` has left a request unanswered for {age:.1f} s"
