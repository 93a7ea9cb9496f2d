"""`Scorer`: scores one battle, or a stream of them, on a served ensemble.

It connects, validates and starts; `pipeline` does the streaming and `transport` the talking.
"""

from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from preference_client.codec import Ensemble
from preference_client.in_flight import MAX
from preference_client.pipeline import Pipeline
from preference_client.retries import Patience
from preference_client.rows import Failure, Outcome, Prediction, Row, row_of
from preference_client.transport import Tls, Transport
from preference_core import tensors
from preference_core.battles.battle import Battle, InvalidText
from preference_core.errors import UserError

DEFAULT_URL = "localhost:8001"


class Scorer:
    """A connection to a served ensemble; use it in a `with` statement. It may be shared between threads.

    with Scorer("localhost:8001") as scorer:
        print(scorer.score({"prompt": "Hi", "response_a": "Hello!", "response_b": "Go away."}).winner)
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        symmetric: bool = False,
        weights: Mapping[str, float] | None = None,
        timeout_s: float = Patience.timeout_s,
        deadline_s: float = Patience.deadline_s,
        max_in_flight: int = MAX,
        invalid_text: InvalidText = "error",
        tls: Tls | None = None,
    ) -> None:
        """Connects at once; raises `ServerError` if no such ensemble answers on `url` (`host:port` of Triton's gRPC).

        `symmetric` averages over both orders of the responses. `weights` (one per member) replace the configured ones.
        A request may take `timeout_s`, a battle with all its retries `deadline_s`. Each `score_many` finds how many
        requests under way the server can use, and has no more than `max_in_flight`. `invalid_text` says what happens to
        characters that no tokenizer reads: the battle fails, or U+FFFD takes their place.
        """
        if max_in_flight < 1:
            raise UserError(f"`max_in_flight` is {max_in_flight}, expected at least 1")
        self._max_in_flight = max_in_flight
        self._patience = Patience(timeout_s, deadline_s)
        self._invalid_text: InvalidText = invalid_text
        model = tensors.ENSEMBLE_SYMMETRIC if symmetric else tensors.ENSEMBLE
        self._transport = Transport(url, model, tls, weights, self._patience)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of every `probabilities`."""
        return self._transport.ensemble.labels

    @property
    def members(self) -> tuple[str, ...]:
        """The members, in the order of every `member_probabilities`."""
        return self._transport.ensemble.members

    @property
    def ensemble(self) -> Ensemble:
        """Which ensemble answers: its name, labels, members, version and content."""
        return self._transport.ensemble

    def score(self, battle: Battle | Mapping[str, Any]) -> Prediction:
        """Scores one battle, given as such or as a mapping with `prompt`, `response_a`, `response_b` and perhaps `id`.

        Raises `BattleError` or `RefusedError` if the battle is at fault, `SystemFailure` otherwise.
        """
        (outcome,) = self.score_many([battle])
        if isinstance(outcome, Failure):
            raise outcome.error
        return outcome

    def score_many(self, battles: Iterable[Battle | Mapping[str, Any] | Row], first_row: int = 1) -> Iterator[Outcome]:
        """Scores a stream of battles, lazily; yields one outcome per battle, in order; `first_row` numbers the first.

        A battle that cannot be scored becomes a `Failure` in its place. Raises `ServerError` when the server itself
        fails. Close the iterator, or leave its loop and drop it, to cancel what is under way.
        """
        rows = (row_of(item, number, self._invalid_text) for number, item in enumerate(battles, first_row))
        return Pipeline(self._transport, rows, self._patience, self._max_in_flight, first_row).outcomes()

    def close(self) -> None:
        """Closes the connection. Iterations under way, in this or other threads, end with a `ServerError`."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
