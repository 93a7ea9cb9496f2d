"""When a request that failed is sent again, and when it is given up. It knows nothing of requests."""

import random
from dataclasses import dataclass

from preference_core.errors import UserError

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 10.0


@dataclass(frozen=True)
class Patience:
    """How long one battle may take: `timeout_s` each time it is sent, `deadline_s` with all its retries."""

    timeout_s: float = 60.0
    deadline_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("timeout_s", "deadline_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"`{name}` is {getattr(self, name)}, expected a positive number of seconds")


def retry_delay_s(failures: int) -> float:
    """Seconds to wait after this many failures in a row: exponential back-off, half of it random."""
    longest = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(failures - 1, 30))
    return longest * random.uniform(0.5, 1.0)
