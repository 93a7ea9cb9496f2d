"""What is cut when a battle has too many tokens: the policies and their budgets. `tokenisation` does the cutting."""

from dataclasses import dataclass
from typing import Literal

from preference_core.errors import ConfigError
from preference_core.structure import at_least
from preference_core.tensors import FIELDS

Policy = Literal["right", "left", "middle", "spread", "longest_first", "turns"]


@dataclass(frozen=True)
class Truncation:
    """What is cut when a battle has more than `max_tokens` tokens; `preference_core.battles.tokenisation` does it."""

    #: `right`, `left`: keep the first or last tokens; `middle`: both ends of each field; `spread`: each field on its
    #: own; `longest_first`: shorten the longest; `turns`: keep the last turns
    policy: Policy = "right"
    prompt_tokens: int | None = None  #: budget of the prompt for `middle` and `spread`; else a third of `max_tokens`
    response_tokens: int | None = None  #: budget of each response, likewise
    mark: str = "\n(snip)\n"  #: stands where `middle` cut

    def __post_init__(self) -> None:
        budgets = {"prompt_tokens": self.prompt_tokens, "response_tokens": self.response_tokens}
        for key, value in budgets.items():
            if value is None:
                continue
            if self.policy not in ("middle", "spread"):
                raise ConfigError(f"`{key}` has no meaning for the policy `{self.policy}`")
            at_least(key, value, 2)

    def budget(self, field_name: str, max_tokens: int) -> int:
        """Tokens that `field_name` may have under `middle` and `spread`."""
        chosen = self.prompt_tokens if field_name == FIELDS[0] else self.response_tokens
        return max_tokens // len(FIELDS) if chosen is None else chosen
