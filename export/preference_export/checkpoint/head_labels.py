"""What the checkpoint says about its classification head: the names of its labels, and how its logits are meant.

Order decides everything: logit i is served as label i of the configuration. It reads no weights.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from preference_core.ensemble.locations import read_json
from preference_core.ensemble.settings import Classifier
from preference_core.errors import ArtefactError

#: The one `problem_type` whose logits a softmax turns into probabilities.
ONE_LABEL_OF_SEVERAL = "single_label_classification"


def check_head(member: Classifier, base: Any, adapters: Iterable[Path], labels: Sequence[str]) -> None:
    """Refuses a head that names other labels than the configuration, or whose logits a softmax would misread.

    `base` is the `transformers` configuration of the base. An adapter brings the head; the names are then in its own
    `config.json` if it has one. With an adapter, a base's head of another size says nothing about the adapter's.
    """
    _check_problem_type(f"`{member.base}`", base.problem_type)
    named = names_of(base.id2label, Path("config.json"))
    if not member.adapters or len(named) == len(labels):
        _check_names(member, f"`{member.base}`", named, labels)
    for folder in adapters:
        path = folder / "config.json"
        own = read_json(path) if path.is_file() else {}
        _check_problem_type(f"`{folder}`", own.get("problem_type"))
        _check_names(member, f"`{folder}`", names_of(own.get("id2label"), path), labels)


def _check_names(member: Classifier, where: str, named: Sequence[str], labels: Sequence[str]) -> None:
    expected = list(member.head_labels or labels)
    if list(named) == expected or not are_given(named):
        return
    key, wanted = ("head_labels", expected) if member.head_labels else ("labels", list(labels))
    hint = f"Logit by logit, the head means: {', '.join(named)}. "
    if sorted(named) == sorted(labels):
        hint += f"Write `labels = {json.dumps(list(named))}`."
    else:
        hint += (
            "Bring `labels` into that order; if the head only uses other names for them, add "
            f"`head_labels = {json.dumps(list(named))}` to the member `{member.name}`."
        )
    raise ArtefactError(
        f"The head of {where} has the labels {', '.join(named)}, `{key}` of the configuration has {', '.join(wanted)}",
        hint=hint,
    )


def _check_problem_type(where: str, problem_type: Any) -> None:
    if problem_type not in (None, ONE_LABEL_OF_SEVERAL):
        raise ArtefactError(
            f"`problem_type` of {where} is `{problem_type}`: its logits are not those of one label of several",
            hint="Probabilities are a softmax over the labels, which would be wrong here. Train the head with "
            f"`{ONE_LABEL_OF_SEVERAL}`; if it was, correct `problem_type` in config.json.",
        )


def are_given(names: Sequence[str]) -> bool:
    """Whether somebody gave these names; Transformers calls the labels of a head LABEL_0, LABEL_1 and so on."""
    return list(names) != [f"LABEL_{index}" for index in range(len(names))]


def names_of(id2label: Any, path: Path) -> list[str]:
    """The names by index; none where nothing is named."""
    if id2label is None:
        return []
    try:
        return [str(id2label[key]) for key in sorted(id2label, key=int)]
    except (TypeError, ValueError) as error:
        raise ArtefactError(
            f"`id2label` in `{path}` is {id2label!r}, expected an object with one name for each number"
        ) from error
