"""Which members of an ensemble a command is about."""

from typing import TypeVar

from preference_core.ensemble.settings import Classifier, Config, LengthBaseline
from preference_core.errors import UserError, nearest

M = TypeVar("M", Classifier, LengthBaseline)


def chosen_members(config: Config, name: str | None, kind: type[M]) -> list[M]:
    """The member called `name`, or all of them, if they are of this `kind`.

    `UserError` naming the nearest where there is no member called `name`.
    """
    names = [member.name for member in config.members]
    if name is not None and name not in names:
        raise UserError(f"There is no member `{name}`", hint=nearest(name, names))
    return [member for member in config.members if name in (None, member.name) and isinstance(member, kind)]
