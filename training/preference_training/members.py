"""Which members of an ensemble a command is about."""

from typing import TypeVar

from preference_core.ensemble.settings import Classifier, Config, LengthBaseline

M = TypeVar("M", Classifier, LengthBaseline)


def chosen_members(config: Config, name: str | None, kind: type[M]) -> list[M]:
    """The member called `name`, or all of them, if they are of this `kind`.

    `UserError` naming the nearest where there is no member called `name`.
    """
    named = config.members if name is None else (config.member(name),)
    return [member for member in named if isinstance(member, kind)]
