"""Why the owner's predictions differ: what was tried on a few battles, and what explains the difference best.

Each trial reads the battles in another way (text, special tokens, truncation, order of responses) or combines the
members in another way; labels in another order are tried with each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product

import numpy as np
import numpy.typing as npt

from preference_core.battles.battle import Battle, swapped_label_order
from preference_core.battles.encoders import BattleEncoder
from preference_core.battles.template import PRESETS, template_of
from preference_core.battles.tokenisation import BattleTokenizer, TokenisationSettings
from preference_core.battles.truncation import Policy, Truncation
from preference_core.ensemble.combination import Combination
from preference_core.errors import UserError
from preference_export.artefacts.model import Logits, TokenIds

Array = npt.NDArray[np.float64]

#: Battles that each trial runs: the shortest ones that differ.
TRIED = 8
#: How much smaller a difference must become before what was changed is worth a word.
WORTH_A_WORD = 0.5
POLICIES: tuple[Policy, ...] = ("right", "left", "longest_first", "turns", "middle", "spread")
LIMITS = (256, 512, 768, 1024, 1280, 1536, 1800, 2048, 3072, 4096)
SEPARATORS = (" ", "\n", "\n\n", "", "</s>", " \n")


@dataclass(frozen=True, eq=False)
class Case:
    """Battles on which two predictions differ.

    `theirs` `[battles, labels]` are the owner's probabilities; `logits` of each member `[battles, labels]` are ours.
    `rules` make probabilities of logits by member: the configured one first, then other ways, by what they are called.
    `open` gives what runs a member. `tolerance` is the difference that counts as none.
    """

    labels: tuple[str, ...]
    battles: Sequence[Battle]
    theirs: Array
    logits: Mapping[str, Logits]
    encoders: Mapping[str, BattleEncoder]
    rules: Mapping[str, "Rule"]
    open: Callable[[str], Callable[[Sequence[TokenIds]], Logits]]
    tolerance: float

    def rows(self, chosen: Sequence[int]) -> "Case":
        """The same for some of the battles."""
        index = list(chosen)
        logits = {name: values[index] for name, values in self.logits.items()}
        return replace(self, battles=[self.battles[n] for n in index], theirs=self.theirs[index], logits=logits)


#: Logits by member and their battles in, probabilities `[battles, labels]` out.
Rule = Callable[[Mapping[str, Logits], Sequence[Battle]], Array]


@dataclass(frozen=True)
class Trial:
    """What was changed, the difference that is left, and the settings of the member that was changed."""

    change: str
    difference: float
    settings: TokenisationSettings | None = None


def likeliest_cause(case: Case) -> str | None:
    """A sentence on the change that makes the predictions equal, or nearly so; None where no trial comes near."""
    rule = next(iter(case.rules.values()))
    difference = np.abs(rule(case.logits, case.battles) - case.theirs).max(axis=1)
    texts = [sum(map(len, (*b.prompt, *b.response_a, *b.response_b))) for b in case.battles]
    telling = sorted(np.flatnonzero(difference > case.tolerance).tolist(), key=texts.__getitem__)[:TRIED]
    if not telling:
        return None
    case = case.rows(telling)
    before = float(difference[telling].max())
    best = min(_trials_of_rules(case), key=lambda trial: trial.difference, default=Trial("", before))
    for member, encoder in case.encoders.items():
        if best.difference > case.tolerance and isinstance(encoder, BattleTokenizer):
            best = min(best, _best_reading(case, member, encoder, rule), key=lambda trial: trial.difference)
    if not best.difference < WORTH_A_WORD * before:
        return None
    left = f"the {len(telling)} battles tried then differ by {best.difference:.2g} instead of {before:.2g}"
    if best.difference <= case.tolerance:
        return f"Most likely {best.change}: {left}."
    return f"Nearest comes {best.change}: {left}, so that there is another difference."


def _trials_of_rules(case: Case) -> Iterator[Trial]:
    """Other ways to combine the same logits, and labels in another order; these need no model."""
    for name, rule in case.rules.items():
        yield _trial(case, name, rule(case.logits, case.battles))


def _best_reading(case: Case, member: str, encoder: BattleTokenizer, rule: Rule) -> Trial:
    """The best of all ways to read a battle that were tried for one member, and of a second change upon it."""
    run = case.open(member)

    def probabilities(reader: BattleTokenizer, battles: Sequence[Battle]) -> Array:
        ids = [encoded.ids for encoded in reader.encode_batch(battles)]
        return rule({**case.logits, member: run(ids)}, battles)

    def tried(settings: TokenisationSettings, before: str) -> Iterator[Trial]:
        for change, changed in _readings(settings, case, encoder):
            try:
                reader = encoder.with_settings(changed)
            except UserError:
                continue  # The tokenizer lacks a token, or budgets leave no room.
            yield _trial(case, f"{before}{change}", probabilities(reader, case.battles), changed)
        if len(case.encoders) == 1:
            reader = encoder.with_settings(settings)
            exchanged = probabilities(reader, [battle.swapped() for battle in case.battles])
            yield _trial(case, f"{before}the responses stand in the other order in the text", exchanged)
            both = (probabilities(reader, case.battles) + exchanged[:, swapped_label_order(case.labels)]) / 2
            yield _trial(case, f"{before}the owner averages both orders of the responses", both)

    best = min(tried(encoder.settings, ""), key=lambda trial: trial.difference)
    if best.difference > case.tolerance and best.settings is not None:
        again = min(tried(best.settings, f"{best.change}; and "), key=lambda trial: trial.difference)
        best = min(best, again, key=lambda trial: trial.difference * (1 if trial is best else 2))
    of = f" (member `{member}`)" if len(case.encoders) > 1 else ""
    return replace(best, change=best.change + of)


def _readings(
    settings: TokenisationSettings, case: Case, encoder: BattleTokenizer
) -> Iterator[tuple[str, TokenisationSettings]]:
    """Other settings, each with what it changes."""
    own = template_of(settings.template)
    texts = [own.text, *(preset.text for preset in PRESETS.values() if preset.text != own.text)]
    for text, bos, eos in product(texts, (own.add_bos, not own.add_bos), (own.add_eos, not own.add_eos)):
        template = replace(own, text=text, add_bos=bos, add_eos=eos)
        if template != own:
            yield f"`template = {template.toml()}`", replace(settings, template=template)
    if any(len(battle.prompt) > 1 for battle in case.battles):
        for separator in SEPARATORS:
            if separator != own.turn_separator:
                template = replace(own, turn_separator=separator)
                yield f"`template = {template.toml()}`", replace(settings, template=template)
    if any(any(encoded.dropped) for encoded in encoder.encode_batch(case.battles)):
        for policy in POLICIES:
            if policy != settings.truncation.policy:
                yield f'`truncation = {{ policy = "{policy}" }}`', replace(settings, truncation=Truncation(policy))
        near = (settings.max_tokens + change for change in (-2, -1, 1, 2))
        for limit in (*near, *LIMITS):
            if limit != settings.max_tokens:
                yield f"`max_tokens = {limit}`", replace(settings, max_tokens=limit)


def _trial(case: Case, change: str, ours: Array, settings: TokenisationSettings | None = None) -> Trial:
    """The trial, with the labels in the order that fits best; the configured one unless another is twice as near."""
    orders = list(permutations(range(len(case.labels))))
    found = [float(np.abs(ours[:, order] - case.theirs).max()) for order in orders]
    best = int(np.argmin(found))
    if best == 0 or not found[best] < WORTH_A_WORD * found[0]:
        return Trial(change or "nothing", found[0], settings)
    named = {place: case.labels[label] for label, place in enumerate(orders[best])}
    order = ", ".join(f'"{named[place]}"' for place in range(len(case.labels)))
    what = f"the head's labels are in the order `labels = [{order}]`"
    return Trial(f"{change}; and {what}" if change else what, found[best], settings)


def rules_of(combination: Combination) -> dict[str, Rule]:
    """The configured rule (called ""), and others that an owner's script may have followed."""
    members = combination.members
    rules: dict[str, Combination] = {"": combination}
    bare = replace(combination, temperatures=(), post_processing=None, fixed={})
    rules["the owner's file is from before temperatures, post-processing and fixed answers"] = bare
    rules["the owner weighs all members alike"] = replace(bare, weights=(1.0,) * len(members))
    rules["the owner averages logits"] = replace(bare, average="logits")
    for name in members if len(members) > 1 else ():
        alone = tuple(float(name == member) for member in members)
        rules[f"the file is from `{name}` alone (compare with `--member {name}`)"] = replace(bare, weights=alone)
    return {name: _rule(combination) for name, combination in rules.items()}


def _rule(combination: Combination) -> Rule:
    def probabilities(logits: Mapping[str, Logits], battles: Sequence[Battle]) -> Array:
        stacked = np.stack([logits[name] for name in combination.members], axis=1)
        return combination.predictions(stacked, map(Battle.special_case, battles))

    return probabilities
