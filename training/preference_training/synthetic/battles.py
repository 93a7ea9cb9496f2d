"""Generated battles that look like the published data and carry a preference that can be learned.

A battle is drawn from a seed: its subject, turns and lengths, two invented models, and the quality of each answer.
The judge then prefers the answer of higher worth (quality, and the logarithm of its length), with noise: the
probabilities it draws from are known, so the lowest reachable log loss is known too.
It knows nothing of files (`rows`) or tokenizers.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, get_args

from preference_training.battles.turns import RawTurns
from preference_training.synthetic.lexicon import Edges, Lexicon, Phrases, lexicon

Quality = Literal["refusal", "vague", "stray", "helpful", "structured"]

#: Share of answers, and worth in the eyes of the judge. `stray` answers are helpful about another subject.
QUALITIES: dict[Quality, tuple[float, float]] = {
    "refusal": (0.10, -2.0),
    "vague": (0.20, -1.2),
    "stray": (0.08, -0.9),
    "helpful": (0.34, 0.3),
    "structured": (0.28, 1.1),
}
WORTH_OF_NO_ANSWER = -3.0
WORTH_OF_LENGTH = 0.7

#: Invented contestants, and how much their skill tilts the shares above towards answers of worth.
MODELS = {"aster-2b": -0.5, "birch-7b": -0.2, "cedar-9b": 0.0, "dahlia-chat": 0.2, "elm-70b": 0.5}

#: The judge: how sharply worth decides, how near two answers must be to tie, and a slight taste for the first answer.
SHARPNESS = 2.6
TIE_MARGIN = 1.85
POSITION_BIAS = 0.05

SHARE_SINGLE_TURN = 0.87
MOST_TURNS = 36
MEDIAN_ANSWER_CHARACTERS = 60
ENGLISH_SHARE, CODE_SHARE = 0.80, 0.08

#: One battle in this many is an edge case, each kind in turn, so that every file of some hundred rows holds them all.
EDGE_CASE_EVERY = 25
EdgeCase = Literal[
    "null turn", "empty text", "no turns", "identical responses", "emoji", "special token", "awkward text"
]
EDGE_CASES: tuple[EdgeCase, ...] = get_args(EdgeCase)


@dataclass(frozen=True)
class GeneratedBattle:
    """One labelled battle. `probabilities` (a, b, tie) are those that the label was drawn from."""

    id: int
    model_a: str
    model_b: str
    prompt: RawTurns
    response_a: RawTurns
    response_b: RawTurns
    worth_a: float = 0.0
    worth_b: float = 0.0
    label: int = 0

    @property
    def probabilities(self) -> tuple[float, float, float]:
        """Ordered logit over the difference in worth: first answer, second answer, tie."""
        lead = SHARPNESS * (self.worth_a - self.worth_b) + POSITION_BIAS
        first, second = _logistic(lead - TIE_MARGIN), _logistic(-lead - TIE_MARGIN)
        return first, second, 1 - first - second


def generate(count: int, seed: int, split: str, ties: bool = True) -> Iterator[GeneratedBattle]:
    """`count` battles with different ids. Equal arguments give equal battles; a larger `count` only appends.

    Without `ties` the judge has to decide: the same battles, each with a winner.
    """
    words = lexicon()
    for index in range(count):
        random = Random(f"{seed}/{split}/{index}")
        battle = _battle(random, words, identity=_identity(seed, split, index))
        if index % EDGE_CASE_EVERY == EDGE_CASE_EVERY - 1:
            battle = _edge_case(EDGE_CASES[index // EDGE_CASE_EVERY % len(EDGE_CASES)], battle, random, words.edges)
        label = random.choices(range(3), decided(battle.probabilities, ties))[0]
        yield replace(battle, label=label)


def decided(probabilities: tuple[float, float, float], ties: bool) -> tuple[float, float, float]:
    """The probabilities themselves, or without `ties` those of a judge who has to name a winner."""
    if ties:
        return probabilities
    first, second, _ = probabilities
    return first / (first + second), second / (first + second), 0.0


def lowest_log_loss(battles: list[GeneratedBattle], ties: bool = True) -> float:
    """Log loss of the judge's own probabilities: no model goes below it, except by luck."""
    return -sum(math.log(decided(battle.probabilities, ties)[battle.label]) for battle in battles) / len(battles)


def _identity(seed: int, split: str, index: int) -> int:
    """An id up to 2^40, most of them past int32; the low bits are the index, so that ids of one file never repeat."""
    return Random(f"{seed}/{split}/id/{index}").getrandbits(20) << 20 | index


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def _battle(random: Random, words: Lexicon, identity: int) -> GeneratedBattle:
    subject = _subject(random, words)
    turns = _turn_count(random)
    models = random.sample(list(MODELS), 2)
    qualities = [_quality(random, MODELS[model]) for model in models]
    scale = random.lognormvariate(0, 0.65)
    texts: list[RawTurns] = []
    for quality in qualities:
        length = MEDIAN_ANSWER_CHARACTERS * scale * random.lognormvariate(0, 0.45)
        texts.append(tuple(_answer(random, words, subject, quality, length) for _ in range(turns)))
    worth_a, worth_b = (
        QUALITIES[quality][1] + WORTH_OF_LENGTH * math.log(sum(len(turn or "") for turn in text))
        for quality, text in zip(qualities, texts, strict=True)
    )
    prompt = tuple(_question(random, words, subject, turn) for turn in range(turns))
    return GeneratedBattle(identity, models[0], models[1], prompt, texts[0], texts[1], worth_a, worth_b)


def _subject(random: Random, words: Lexicon) -> str:
    """The name of a topic, of a language, or `code`."""
    kind = random.random()
    if kind < ENGLISH_SHARE:
        return random.choice(list(words.topics))
    return "code" if kind < ENGLISH_SHARE + CODE_SHARE else random.choice(list(words.languages))


def _turn_count(random: Random) -> int:
    if random.random() < SHARE_SINGLE_TURN:
        return 1
    return min(2 + int(random.expovariate(0.6)), MOST_TURNS)


def _quality(random: Random, skill: float) -> Quality:
    weights = [share * math.exp(skill * worth) for share, worth in QUALITIES.values()]
    return random.choices(list(QUALITIES), weights)[0]


def _question(random: Random, words: Lexicon, subject: str, turn: int) -> str:
    phrases = _phrases(words, subject)
    if phrases is not None:
        return random.choice(phrases.questions)
    patterns = words.patterns.questions if turn == 0 else words.patterns.follow_ups
    return _filled(random, words, subject, random.choice(patterns))


def _answer(random: Random, words: Lexicon, subject: str, quality: Quality, length: float) -> str:
    """Sentences of one quality until the text has about `length` characters."""
    if quality == "stray":
        subject = random.choice([topic for topic in words.topics if topic != subject])
    opener, closer = _frame(random, words, subject, quality)
    text = opener
    while len(text) < length or text == opener:
        sentence = _sentence(random, words, subject, quality)
        text += sentence if not text or sentence.startswith("\n") else " " + sentence
    return (text + closer).strip()


def _frame(random: Random, words: Lexicon, subject: str, quality: Quality) -> tuple[str, str]:
    """How good English answers may begin and end; nothing for the others."""
    if quality in ("refusal", "vague") or subject in words.languages:
        return "", ""
    opener = random.choice(words.patterns.openers) if random.random() < 0.4 else ""
    closer = " " + random.choice(words.patterns.closers) if random.random() < 0.2 else ""
    return opener, closer


def _sentence(random: Random, words: Lexicon, subject: str, quality: Quality) -> str:
    phrases = _phrases(words, subject)
    if quality in ("refusal", "vague"):
        source = phrases or words.patterns
        return random.choice(source.refusal if quality == "refusal" else source.vague)
    if phrases is not None:
        sentence = random.choice(phrases.helpful)
        return f"\n- {sentence.strip()}" if quality == "structured" and "```" not in sentence else sentence
    patterns = words.patterns.structured if quality == "structured" else words.patterns.helpful
    return _filled(random, words, subject, random.choice(patterns))


def _phrases(words: Lexicon, subject: str) -> Phrases | None:
    return words.code if subject == "code" else words.languages.get(subject)


def _filled(random: Random, words: Lexicon, subject: str, pattern: str) -> str:
    """The pattern with each slot filled from the topic; what begins a sentence gets a capital letter."""
    topic = words.topics[subject]
    for slot in ("thing", "action", "reason"):
        while f"{{{slot}}}" in pattern:
            pattern = pattern.replace(f"{{{slot}}}", random.choice(getattr(topic, slot)), 1)
    return pattern[0].upper() + pattern[1:]


def _edge_case(kind: EdgeCase, battle: GeneratedBattle, random: Random, edges: Edges) -> GeneratedBattle:
    """The battle as one of `EDGE_CASES`."""
    a, b = battle.response_a, battle.response_b
    match kind:
        case "null turn":
            return replace(battle, response_b=(None, *b[1:]), worth_b=WORTH_OF_NO_ANSWER)
        case "empty text":
            return replace(battle, response_a=("", *a[1:]), worth_a=WORTH_OF_NO_ANSWER)
        case "no turns":
            return replace(battle, prompt=(), response_a=(), response_b=(), worth_a=0.0, worth_b=0.0)
        case "identical responses":
            return replace(battle, response_b=a, worth_b=battle.worth_a)
        case "emoji":
            return replace(battle, response_a=(*a[:-1], f"{a[-1]} {random.choice(edges.emoji)}"))
        case "special token":
            return replace(battle, response_b=(*b[:-1], f"{b[-1]} {random.choice(edges.special_tokens)}"))
        case "awkward text":
            first, *others = battle.prompt
            return replace(battle, prompt=(f"{random.choice(edges.awkward)} {first}", *others))
