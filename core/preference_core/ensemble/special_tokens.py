"""Special tokens round a text: whether a checkpoint's tokenizer puts the same ones there as the member's template.

Training with one and serving with the other gives plausible wrong scores. It compares; it changes no tokenizer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from preference_core.battles.template import template_of
from preference_core.battles.tokenisation import TOKENIZER_FILE, TokenisationSettings, read_tokenizer
from preference_core.ensemble.member_tokenizer import TOKENIZER_SETTINGS, tokenizer_table
from preference_core.ensemble.settings import Classifier
from preference_core.errors import ArtefactError


@dataclass(frozen=True)
class Around:
    """The special tokens before and after a text."""

    before: tuple[str, ...]
    after: tuple[str, ...]

    def __str__(self) -> str:
        return f"`{' '.join((*self.before, 'TEXT', *self.after))}`"


def around_of_template(settings: TokenisationSettings) -> Around:
    """What the template puts round a text."""
    template = template_of(settings.template)
    return Around(_those(settings.bos_token, template.add_bos), _those(settings.eos_token, template.add_eos))


def around_by_mask(tokens: Sequence[str], mask: Sequence[int]) -> Around:
    """What stands round the text in `tokens`, of which `mask` is 0 where they are the text's own."""
    first, last = mask.index(0), len(mask) - mask[::-1].index(0)
    return Around(tuple(tokens[:first]), tuple(tokens[last:]))


def voices_of(checkpoint: Path, settings: TokenisationSettings) -> dict[str, Around]:
    """What the files of a checkpoint say: the post-processor of its tokenizer, and the flags of its configuration."""
    encoding = read_tokenizer(checkpoint / TOKENIZER_FILE).encode("a")
    built_in = around_by_mask(encoding.tokens, encoding.special_tokens_mask)
    voices = {f"`post_processor` in {TOKENIZER_FILE}": built_in}
    table = tokenizer_table(checkpoint) if (checkpoint / TOKENIZER_SETTINGS).is_file() else {}
    flags = {key: table[key] for key in ("add_bos_token", "add_eos_token") if isinstance(table.get(key), bool)}
    if flags:
        bos, eos = (flags.get(key) for key in ("add_bos_token", "add_eos_token"))
        voices[f"{' and '.join(f'`{key}`' for key in flags)} in tokenizer_config.json"] = Around(
            built_in.before if bos is None else _those(settings.bos_token, bos),
            built_in.after if eos is None else _those(settings.eos_token, eos),
        )
    return voices


def check_special_tokens(
    member: Classifier, origin: str, settings: TokenisationSettings, voices: Mapping[str, Around], *, own: bool = False
) -> None:
    """Raises `ArtefactError` where one of `voices` disagrees with the template, unless `special_tokens` allows it.

    `own` says that the tokenizer was saved with the adapter. It then is the one of training, and `special_tokens` only
    decides where its voices contradict each other.
    """
    wanted = around_of_template(settings)
    others = {who: around for who, around in voices.items() if around != wanted}
    agreed = len(others) == len(voices)
    if not others or (member.special_tokens == "template" and not (own and agreed)):
        return
    said = "; ".join(f"{who} says {around}" for who, around in others.items())
    hints = []
    fitting = template_for(next(iter(others.values())), settings)
    if fitting is not None:
        hints.append(f"If training used this tokenizer as it is, write `template = {fitting}`.")
    if own and agreed:
        hints.append(f"If it used another one, remove this one's files from `{origin}`.")
    else:
        hints.append('If training did as the template does, write `special_tokens = "template"`.')
    hints.append("Then compare with your own predictions: `preference-export check CONFIG --against FILE`.")
    raise ArtefactError(
        f"The template of `{member.name}` makes of a text {wanted}, the tokenizer of `{origin}` does not: {said}",
        hint=" ".join(hints),
    )


def template_for(around: Around, settings: TokenisationSettings) -> str | None:
    """The template that does what a tokenizer does, as TOML; None where no template can."""
    bos, eos = around.before != (), around.after != ()
    if around != Around(_those(settings.bos_token, bos), _those(settings.eos_token, eos)):
        return None
    return replace(template_of(settings.template), add_bos=bos, add_eos=eos).toml()


def _those(token: str | None, wanted: bool) -> tuple[str, ...]:
    return (token,) if wanted and token is not None else ()
