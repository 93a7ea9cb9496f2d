"""The Triton model `combine` (and `combine_symmetric`): the members' logits in, one prediction out.

The rule lies beside it in `combination.json`; a request may bring its own weights.
"""

import json
from typing import Any

import numpy as np

from preference_core import tensors
from preference_core.battles.battle import SPECIAL_CASES
from preference_core.ensemble.combination import Combination
from preference_core.structure import structure
from preference_core.triton.requests import model_context, per_request, row_of_request


class Combine:
    """Holds the rule, and the names of the logits it is given in one or in both orders of the responses.

    `triton` is the server's `triton_python_backend_utils`.
    """

    triton: Any

    def initialize(self, args: dict[str, str]) -> None:
        context = model_context(args)
        rule = json.loads((context.version_folder / "combination.json").read_text(encoding="utf-8"))
        self.combination = structure(Combination, rule)
        symmetric = context.parameters[tensors.SYMMETRIC_PARAMETER] == "true"
        orders = tensors.ORDERS if symmetric else (None,)
        self.logits = [[tensors.member_logits(name, order) for name in context.members] for order in orders]
        self.weights = tensors.weights(len(context.members)).name
        self.probabilities = tensors.probabilities(len(context.labels)).name
        self.member_probabilities = tensors.member_probabilities(len(context.members), len(context.labels)).name

    def execute(self, requests: list[Any]) -> list[Any]:
        return per_request(requests, self.answer, self.triton)

    def answer(self, request: Any) -> Any:
        by_order = [np.stack([row_of_request(name, request, self.triton) for name in names]) for names in self.logits]
        weights = None
        if self.triton.get_input_tensor_by_name(request, self.weights) is not None:
            weights = row_of_request(self.weights, request, self.triton)
        case = SPECIAL_CASES[int(row_of_request(tensors.SPECIAL_CASE.name, request, self.triton)[0])]
        fixed = self.combination.fixed_probabilities(case)
        results = {
            self.probabilities: self.combination.probabilities(*by_order, weights=weights) if fixed is None else fixed,
            self.member_probabilities: self.combination.member_probabilities(*by_order),
        }
        return self.triton.InferenceResponse(
            output_tensors=[self.triton.Tensor(name, value[None].astype(np.float32)) for name, value in results.items()]
        )
