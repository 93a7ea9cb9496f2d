"""Which members of an ensemble a command is about."""

from preference_core.ensemble.settings import Config, Kind, Member
from preference_core.errors import UserError, nearest


def chosen_members(config: Config, name: str | None, kind: Kind | None = None) -> list[Member]:
    """The member called `name`, or all of them; of one `kind` where that is given.

    `UserError` naming the nearest where there is no member called `name`.
    """
    names = [member.name for member in config.members]
    if name is not None and name not in names:
        raise UserError(f"There is no member `{name}`", hint=nearest(name, names))
    return [member for member in config.members if name in (None, member.name) and kind in (None, member.kind)]
