"""What is known of a host without asking anybody."""

import pytest

from preference_core.addresses import is_loopback


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("example.org", False)],
)
def test_only_loopback_addresses_stay_on_this_machine(host, expected):
    assert is_loopback(host) is expected
