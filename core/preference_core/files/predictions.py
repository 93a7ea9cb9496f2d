"""The columns of a file of predictions. It knows their names and order, and nothing of where predictions come from."""

from collections.abc import Iterable, Sequence


def probability_columns(labels: Sequence[str], members: Iterable[str]) -> list[str]:
    """Columns of the combined probabilities, then of each member's."""
    return [*labels, *(column for member in members for column in member_columns(member, labels))]


def member_columns(member: str, labels: Sequence[str]) -> list[str]:
    """Columns of one member's probabilities."""
    return [f"{member}_{label}" for label in labels]


def dropped_column(member: str) -> str:
    """Column of the number of tokens that truncation cut for one member."""
    return f"{member}_dropped_tokens"
