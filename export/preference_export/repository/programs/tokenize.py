"""Triton Python model `tokenize`: one battle in, the token ids of every member out.

Requests are batched by the server only to share the call; each is one battle and fails or succeeds on its own.
"""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from preference_core import tensors
from preference_core.battles.battle import SPECIAL_CASES
from preference_core.battles.encoders import encoder_from_folder
from preference_core.triton_model import battle_of_request, model_context, per_request


class TritonPythonModel:
    """Holds one encoder per member."""

    def initialize(self, args: dict[str, str]) -> None:
        context = model_context(args)
        for name in context.unchecked:
            pb_utils.Logger.log_warn(f"Member `{name}` is served unchecked: it was not compared with its original")
        self.encoders = {name: encoder_from_folder(context.version_folder / name) for name in context.members}
        self.token_counts = tensors.token_counts(len(context.members)).name
        self.dropped_tokens = tensors.dropped_tokens(len(context.members)).name

    def execute(self, requests: list[Any]) -> list[Any]:
        return per_request(requests, self.answer, pb_utils)

    def answer(self, request: Any) -> Any:
        battle = battle_of_request(request, pb_utils)
        encoded = {name: encoder.encode(battle) for name, encoder in self.encoders.items()}
        counts = [len(tokens.ids) for tokens in encoded.values()]
        dropped = [tokens.dropped for tokens in encoded.values()]
        outputs = [
            pb_utils.Tensor(tensors.member_input_ids(name), tokens.ids[None]) for name, tokens in encoded.items()
        ]
        outputs.append(pb_utils.Tensor(self.token_counts, np.array([counts], dtype=np.int32)))
        case = np.array([[SPECIAL_CASES.index(battle.special_case())]], dtype=np.int32)
        outputs.append(pb_utils.Tensor(tensors.SPECIAL_CASE.name, case))
        outputs.append(pb_utils.Tensor(self.dropped_tokens, np.array([dropped], dtype=np.int32)))
        return pb_utils.InferenceResponse(output_tensors=outputs)
