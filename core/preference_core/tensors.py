"""Every model name, tensor name, dtype and shape of the served ensemble, once.

Shapes leave out the batch dimension, as Triton's configuration does; -1 is a length that varies.
One request is one battle, so the batch dimension of every ensemble request is 1.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from preference_core.errors import ArtefactError

TOKENIZE = "tokenize"
COMBINE = "combine"
COMBINE_SYMMETRIC = "combine_symmetric"
ENSEMBLE = "preference_ensemble"
ENSEMBLE_SYMMETRIC = "preference_ensemble_symmetric"
RESERVED_MODEL_NAMES = frozenset({TOKENIZE, COMBINE, COMBINE_SYMMETRIC, ENSEMBLE, ENSEMBLE_SYMMETRIC})

#: Parameters in the Triton configuration of every model of the ensemble: `joined` names, in order.
MEMBERS_PARAMETER = "members"
LABELS_PARAMETER = "labels"
#: Parameters of the ensembles in an assembled repository: the configuration's name, the fingerprint of all its files.
NAME_PARAMETER = "ensemble"
CONTENT_PARAMETER = "content"
#: Parameter of the combining models: "true" where both orders of the responses come in.
SYMMETRIC_PARAMETER = "symmetric"

#: Order of the text fields wherever a tensor has one entry per field.
FIELDS = ("prompt", "response_a", "response_b")

#: What a dimension of the symmetric ensemble means: the battle as given, then with its responses exchanged.
ORDERS = ("ab", "ba")


def joined(names: Iterable[str]) -> str:
    """Names as the value of a parameter."""
    return ",".join(names)


def names_in(value: str) -> tuple[str, ...]:
    """The names in the value of a parameter, in order."""
    return tuple(value.split(","))


def labels_and_members(model: str, parameters: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of labels and members that a served model has in its parameters.

    Raises `ArtefactError` where it has none; `model` says which one that is.
    """
    for key in (LABELS_PARAMETER, MEMBERS_PARAMETER):
        if not parameters.get(key):
            raise ArtefactError(
                f"{model} has no parameter `{key}`: its repository was not made by this project",
                hint="Make one with `make export`, and serve that.",
            )
    return names_in(parameters[LABELS_PARAMETER]), names_in(parameters[MEMBERS_PARAMETER])


def release(name: str, version: object, content: str) -> str:
    """Which ensemble is served, as people read it: the fingerprint by its first digits."""
    return f"{name} version {version}" + (f" (content {content[:12]})" if content else "")


@dataclass(frozen=True)
class Tensor:
    """One named tensor. `dtype` uses Triton's short names (BYTES, INT32, FP32); `dims` leaves out the batch."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    optional: bool = False


#: Bytes of the length, a little-endian number, before each text of a BYTES tensor.
LENGTH_BYTES = 4


def bytes_contents(texts: Iterable[bytes]) -> bytes:
    """The contents of a BYTES tensor: each text after its length."""
    return b"".join(part for text in texts for part in (len(text).to_bytes(LENGTH_BYTES, "little"), text))


# What a client sends: the turns of each field as UTF-8, and, if wished, weights that override the configured ones.
# Triton is told that all are optional: it answers a missing required tensor of an ensemble with "unexpected deadlock",
# while `tokenize` answers with the tensor's name.
PROMPT = Tensor("prompt", "BYTES", (-1,), optional=True)
RESPONSE_A = Tensor("response_a", "BYTES", (-1,), optional=True)
RESPONSE_B = Tensor("response_b", "BYTES", (-1,), optional=True)
BATTLE_INPUTS = (PROMPT, RESPONSE_A, RESPONSE_B)


def weights(members: int) -> Tensor:
    """Optional weights of the members, in the order of the configuration; they need not sum to 1."""
    return Tensor("weights", "FP32", (members,), optional=True)


# What a client gets.
def probabilities(labels: int) -> Tensor:
    """Probability per label, in the order of the configuration's `labels`."""
    return Tensor("probabilities", "FP32", (labels,))


def member_probabilities(members: int, labels: int) -> Tensor:
    """Probability per member and label, before weighting and post-processing."""
    return Tensor("member_probabilities", "FP32", (members, labels))


def token_counts(members: int) -> Tensor:
    """Tokens each member's engine was given."""
    return Tensor("token_counts", "INT32", (members,))


def dropped_tokens(members: int) -> Tensor:
    """Tokens cut from each field (`FIELDS`) by each member's truncation policy."""
    return Tensor("dropped_tokens", "INT32", (members, len(FIELDS)))


def answer(members: int, labels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Everything that an ensemble returns, in this order."""
    return probabilities(labels), member_probabilities(members, labels), token_counts(members), dropped_tokens(members)


#: Index into `preference_core.battles.battle.SPECIAL_CASES`; passes from `tokenize` to the combining models.
SPECIAL_CASE = Tensor("special_case", "INT32", (1,))

# What an engine is given, packed without padding, and returns.
INPUT_IDS = Tensor("input_ids", "INT32", (-1,))
LENGTHS = Tensor("lengths", "INT32", (-1,))  #: of the sequences, in tokens
MAX_SEQLEN = Tensor("max_seqlen", "INT32", (-1,))  #: only its own length counts: the longest sequence's
ENGINE_INPUTS = (INPUT_IDS, LENGTHS, MAX_SEQLEN)


def logits(labels: int) -> Tensor:
    """Raw scores per label of one sequence."""
    return Tensor("logits", "FP32", (labels,))


def member_input_ids(member: str, order: str | None = None) -> str:
    """Name, inside the ensemble, of the token ids made for `member`, for one order of the responses."""
    return f"{member}_input_ids" if order is None else f"{member}_input_ids_{order}"


def member_logits(member: str, order: str | None = None) -> str:
    """Name, inside the ensemble, of the logits of `member` for one order of the responses."""
    return f"{member}_logits" if order is None else f"{member}_logits_{order}"
