"""The Triton model `tokenize`: one battle in, the token ids of every member out.

Requests are batched by the server only to share the call; each is one battle and fails or succeeds on its own.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from preference_core import tensors
from preference_core.battles.battle import SPECIAL_CASES
from preference_core.battles.encoders import encoder_from_folder
from preference_core.errors import BattleError, UserError
from preference_core.triton.requests import battle_of_request, model_context, per_request

TOKENS = "preference_tokens"
DROPPED_TOKENS = "preference_dropped_tokens"
SHORTENED = "preference_shortened_battles"
BATTLES = "preference_battles"
REFUSED = "preference_refused_battles"
#: Of the server's own metrics page: what each counter counts, and the name of its label.
COUNTERS = {
    TOKENS: ("Token ids that members were given", "member"),
    DROPPED_TOKENS: ("Token ids that did not fit a member's maximum", "member"),
    SHORTENED: ("Battles that did not fit a member's maximum", "member"),
    BATTLES: ("Battles by the special case that they are", "case"),
    REFUSED: (
        "Battles that were refused, by the field that is wrong; `request` and `internal` are not fields",
        "field",
    ),
}


class Counters:
    """The counters of `COUNTERS`. What `add` collects reaches the server with `publish`: each metric once per call."""

    def __init__(self, members: Iterable[str], triton: Any) -> None:
        families = {
            name: triton.MetricFamily(name=name, description=what, kind=triton.MetricFamily.COUNTER)
            for name, (what, _) in COUNTERS.items()
        }
        values = dict.fromkeys((TOKENS, DROPPED_TOKENS, SHORTENED), tuple(members))
        values |= {BATTLES: SPECIAL_CASES, REFUSED: (*tensors.FIELDS, "request", "internal")}
        self._metrics = {
            (name, value): families[name].Metric(labels={COUNTERS[name][1]: value})
            for name in COUNTERS
            for value in values[name]
        }
        self._families = families  # A metric without its family is an error in the server.
        self._collected: Counter[tuple[str, str]] = Counter()

    def add(self, name: str, label: str, count: int = 1) -> None:
        self._collected[name, label] += count

    def refused(self, error: Exception) -> None:
        field = "request" if isinstance(error, UserError) else "internal"
        if isinstance(error, BattleError) and error.field in tensors.FIELDS:
            field = error.field
        self.add(REFUSED, field)

    def publish(self) -> None:
        for key, count in self._collected.items():
            if count:
                self._metrics[key].increment(count)
        self._collected.clear()


class Tokenize:
    """Holds one encoder per member. `triton` is the server's `triton_python_backend_utils`."""

    triton: Any

    def initialize(self, args: dict[str, str]) -> None:
        context = model_context(args)
        for name in context.unchecked:
            self.triton.Logger.log_warn(f"Member `{name}` is served unchecked: it was not compared with its original")
        self.encoders = {name: encoder_from_folder(context.version_folder / name) for name in context.members}
        self.counters = Counters(context.members, self.triton)
        self.token_counts = tensors.token_counts(len(context.members)).name
        self.dropped_tokens = tensors.dropped_tokens(len(context.members)).name

    def execute(self, requests: list[Any]) -> list[Any]:
        responses = per_request(requests, self.answer, self.triton, self.counters.refused)
        self.counters.publish()
        return responses

    def answer(self, request: Any) -> Any:
        battle = battle_of_request(request, self.triton)
        encoded = {name: encoder.encode(battle) for name, encoder in self.encoders.items()}
        counts = [len(tokens.ids) for tokens in encoded.values()]
        dropped = [tokens.dropped for tokens in encoded.values()]
        outputs = [
            self.triton.Tensor(tensors.member_input_ids(name), tokens.ids[None]) for name, tokens in encoded.items()
        ]
        outputs.append(self.triton.Tensor(self.token_counts, np.array([counts], dtype=np.int32)))
        kind = battle.special_case()
        case = np.array([[SPECIAL_CASES.index(kind)]], dtype=np.int32)
        self.counters.add(BATTLES, kind)
        for name, tokens in encoded.items():
            self.counters.add(TOKENS, name, len(tokens.ids))
            self.counters.add(DROPPED_TOKENS, name, sum(tokens.dropped))
            self.counters.add(SHORTENED, name, int(any(tokens.dropped)))
        outputs.append(self.triton.Tensor(tensors.SPECIAL_CASE.name, case))
        outputs.append(self.triton.Tensor(self.dropped_tokens, np.array([dropped], dtype=np.int32)))
        return self.triton.InferenceResponse(output_tensors=outputs)
