"""Tokenisation against the Hugging Face tokenizers, over every edge row of the published data."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from preference_core.battles.battle import Battle, battle_from_row
from preference_core.battles.template import PRESETS
from preference_core.battles.tokenisation import (
    BattleTokenizer,
    TokenisationSettings,
    write_tokenisation,
)
from preference_core.battles.truncation import Truncation
from preference_core.battles.window import Window, shared
from preference_core.ensemble.member_tokenizer import settings_of_checkpoint
from preference_core.ensemble.settings import Classifier
from preference_core.errors import ArtefactError, ConfigError
from preference_core.tensors import FIELDS
from preference_training.synthetic.tiny_tokenizer import train_tokenizer

EDGE_ROWS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "golden" / "edge_battles.jsonl").read_text(encoding="utf-8").splitlines()
]
EDGE_BATTLES = [battle_from_row(row) for row in EDGE_ROWS]
POLICIES = ["right", "left", "middle", "spread", "longest_first", "turns"]
FAMILIES = {"gemma": "gemma2", "llama": "llama", "qwen": "qwen2"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A tokenizer folder per template, as the checkpoints carry it."""
    texts = [PRESETS["gemma"].render(battle) for battle in EDGE_BATTLES] * 3
    folders = {}
    for template, family in FAMILIES.items():
        folders[template] = tmp_path_factory.mktemp(template)
        train_tokenizer(family, texts, 700).save(folders[template])
    return folders


@pytest.fixture(params=FAMILIES)
def template(request):
    return request.param


@pytest.fixture
def checkpoint(checkpoints, template):
    return checkpoints[template]


@pytest.fixture
def make(checkpoint, template):
    def tokenizer_for(max_tokens, **truncation):
        member = Classifier(
            name="m", base="b", template=template, max_tokens=max_tokens, truncation=Truncation(**truncation)
        )
        settings = settings_of_checkpoint(checkpoint, member)
        return BattleTokenizer(Tokenizer.from_file(str(checkpoint / "tokenizer.json")), settings)

    return tokenizer_for


def hugging_face_tokenizer(checkpoint, **settings):
    """As the published training code sets it up: bos and eos for Gemma, which alone has a flag for bos."""
    config = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = {"add_bos_token": True, "add_eos_token": True} if "add_bos_token" in config else {}
    return AutoTokenizer.from_pretrained(checkpoint, **added, **settings)


def long_battle(words=400, seed=0):
    generator = random.Random(seed)
    vocabulary = ["peru", "capital", "12345", "日本", "\n\n", "don't", "🚀", "  ", "<eos>", "word", "é", ",", "the"]
    return Battle(*((" ".join(generator.choices(vocabulary, k=words)),) for _ in FIELDS))


@pytest.mark.parametrize("max_tokens", [20, 48, 4096])
@pytest.mark.parametrize("side", ["right", "left"])
def test_ids_equal_those_of_the_hugging_face_tokenizer(make, checkpoint, max_tokens, side):
    reference = hugging_face_tokenizer(checkpoint, truncation_side=side)
    tokenizer = make(max_tokens, policy=side)
    for battle in [*EDGE_BATTLES, long_battle()]:
        expected = reference(tokenizer.template.render(battle), truncation=True, max_length=max_tokens).input_ids
        assert tokenizer.encode(battle).ids.tolist() == expected


@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_gives_what_each_battle_gives_alone_and_never_too_much(make, policy):
    tokenizer = make(64, policy=policy)
    battles = [*EDGE_BATTLES, long_battle()]
    for battle, together in zip(battles, tokenizer.encode_batch(battles), strict=True):
        alone = tokenizer.encode(battle)
        assert together.ids.tolist() == alone.ids.tolist()
        assert together.dropped == alone.dropped
        assert 0 < len(alone.ids) <= 64


def test_special_tokens_stand_where_the_template_says(make, template, checkpoint):
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))
    raw = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    ids = make(24, policy="right").encode(long_battle()).ids
    assert len(ids) == 24
    assert (ids[0] == raw.token_to_id(settings["bos_token"] or "")) == (template in ("gemma", "llama"))
    assert (ids[-1] == raw.token_to_id(settings["eos_token"])) == (template == "gemma")


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_is_dropped_where_everything_fits(make, policy):
    for battle in EDGE_BATTLES:
        assert make(4096, policy=policy).encode(battle).dropped == (0, 0, 0)


def test_right_drops_the_end_and_left_the_beginning(make):
    battle = Battle(("first " * 30,), ("first " * 30,), ("first " * 30,))
    right = make(100, policy="right").encode(battle).dropped
    left = make(100, policy="left").encode(battle).dropped
    assert right[0] <= right[1] <= right[2]
    assert right[2] > 0
    assert left[0] >= left[1] >= left[2]
    assert left[0] > 0


def test_kept_and_dropped_tokens_add_up_to_the_whole_text(make):
    battle = long_battle(50)
    whole = make(8192, policy="right").encode(battle)
    for policy in ("right", "left"):
        cut = make(100, policy=policy).encode(battle)
        literals = sum(len(piece.literal) for piece in make(100).template.pieces)
        missing = len(whole.ids) - len(cut.ids) - sum(cut.dropped)
        assert 0 <= missing <= literals  # tokens of the template that were cut belong to no field


def test_middle_keeps_the_head_and_the_tail_of_each_field_round_the_mark(make, checkpoint):
    numbers = Battle(*((" ".join(f"{name}{i}" for i in range(90)),) for name in ("p", "a", "b")))
    tokenizer = make(2000, policy="middle", prompt_tokens=40, response_tokens=60)
    encoded = tokenizer.encode(numbers)
    text = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).decode(encoded.ids.tolist())
    assert text.count("(snip)") == 3
    for name in ("p", "a", "b"):
        assert f"{name}0 " in text
        assert f"{name}89" in text
        assert f"{name}45 " not in text
    assert all(count > 0 for count in encoded.dropped)


def test_middle_then_cuts_on_the_right_when_its_budgets_exceed_the_limit(make):
    encoded = make(100, policy="middle", prompt_tokens=60, response_tokens=60).encode(long_battle(60))
    assert len(encoded.ids) == 100
    assert encoded.dropped[2] > encoded.dropped[1]


def test_longest_first_spares_the_short_fields(make):
    battle = Battle(("short question",), ("brief",), ("very long answer " * 100,))
    encoded = make(80, policy="longest_first").encode(battle)
    assert encoded.dropped[:2] == (0, 0)
    assert encoded.dropped[2] > 0
    assert 75 <= len(encoded.ids) <= 80


def turns_battle(turns, words):
    return Battle(*(tuple(f"{name}{turn} " * words for turn in range(turns)) for name in ("p", "a", "b")))


def test_turns_keeps_the_last_turns_whole_and_shares_the_rest(make, checkpoint):
    tokenizer = make(130, policy="turns")
    battle = turns_battle(turns=6, words=4)
    encoded = tokenizer.encode(battle)
    text = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).decode(encoded.ids.tolist())
    assert 110 <= len(encoded.ids) <= 130
    for name in ("p", "a", "b"):
        assert text.count(f"{name}5") == text.count(f"{name}4") == 4
        assert f"{name}0" not in text
    assert min(encoded.dropped) > 0


def test_turns_gives_an_overflowing_only_turn_one_part_prompt_and_two_parts_each_response(make):
    tokenizer = make(230, policy="turns")
    text = "word " * 100
    total = len(tokenizer._window.prefix(text, 230).ids)
    encoded = tokenizer.encode(Battle((text,), (text,), (text,)))
    prompt, response_a, response_b = (total - dropped for dropped in encoded.dropped)
    assert response_a == response_b == pytest.approx(2 * prompt, abs=1)
    assert len(encoded.ids) >= 220


@pytest.mark.parametrize(
    ("lengths", "shares", "available", "kept"),
    [
        ((10, 20, 30), (1, 1, 1), 60, [10, 20, 30]),
        ((10, 20, 30), (1, 1, 1), 45, [10, 17, 17]),
        ((100, 100, 100), (1, 2, 2), 50, [10, 20, 20]),
        ((100, 5, 100), (1, 2, 2), 50, [15, 5, 30]),
        ((1, 1, 1), (1, 1, 1), 0, [0, 0, 0]),
    ],
)
def test_room_that_a_short_field_does_not_need_goes_to_the_others(lengths, shares, available, kept):
    assert shared(lengths, shares, available) == kept


def test_spread_gives_each_field_its_own_budget_and_special_tokens(make, checkpoint, template):
    reference = hugging_face_tokenizer(checkpoint)
    tokenizer = make(90, policy="spread")
    battle = long_battle()
    texts = tokenizer.template.field_texts(battle)
    pieces = [piece.literal + texts[piece.field] for piece in tokenizer.template.pieces]
    expected = [id for piece in pieces for id in reference(piece, truncation=True, max_length=30).input_ids]
    assert tokenizer.encode(battle).ids.tolist() == expected


def test_spread_refuses_budgets_that_exceed_the_limit():
    with pytest.raises(ConfigError, match="add up to 150"):
        TokenisationSettings("qwen", 100, Truncation(policy="spread", prompt_tokens=50, response_tokens=50))


def test_spread_refuses_a_budget_that_special_tokens_and_the_template_use_up(make):
    with pytest.raises(ConfigError, match="`spread` gives `prompt` 2 tokens"):
        make(90, policy="spread", prompt_tokens=2, response_tokens=20)
    with pytest.raises(ConfigError, match="`spread` gives `response_a` 2 tokens"):
        make(90, policy="spread", prompt_tokens=40, response_tokens=2)


@pytest.mark.parametrize("unit", ["word ", "x", "1", " ", "\n", "日", "🚀", "a1 ", "<eos>", "é"])
def test_long_text_is_read_only_as_far_as_it_decides_the_result(make, checkpoint, unit):
    whole = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    whole.post_processor = None
    text = "It begins " + unit * 20_000 + " it ends"
    ids = whole.encode(text, add_special_tokens=False).ids
    window = Window(whole)
    head, tail = window.prefix(text, 50), window.suffix(text, 50)
    assert head.ids[:50].tolist() == ids[:50]
    assert tail.ids[-50:].tolist() == ids[-50:]
    assert len(head.ids) < len(ids) / 2


def test_ten_megabytes_cost_no_more_than_a_page_and_are_reported_as_dropped(make):
    text = "Some words of a very long answer. " * 300_000
    seen = []
    tokenizer = make(128, policy="middle", prompt_tokens=16, response_tokens=16)
    encode = tokenizer._window._encode
    tokenizer._window._encode = lambda part: seen.append(len(part)) or encode(part)
    encoded = tokenizer.encode(Battle((text,), (text,), ("short",)))
    exact = len(make(64)._window.prefix(text[:34], 64).ids) * 300_000
    assert sum(seen) < 20_000
    assert len(encoded.ids) <= 128
    assert encoded.dropped[:2] == pytest.approx((exact, exact), rel=0.1)
    assert encoded.dropped[2] == 0


def test_a_tokenizer_without_the_templates_special_token_is_refused(checkpoints):
    raw = Tokenizer.from_file(str(checkpoints["qwen"] / "tokenizer.json"))
    with pytest.raises(ArtefactError, match="needs a bos token"):
        BattleTokenizer(raw, TokenisationSettings("llama", 64, bos_token=None, eos_token=None))


def test_a_written_folder_reads_back_the_same(make, checkpoint, template, tmp_path):
    tokenizer = make(64, policy="middle", prompt_tokens=20, response_tokens=20)
    write_tokenisation(tmp_path, checkpoint, tokenizer.settings)
    again = BattleTokenizer.from_folder(tmp_path)
    assert again.settings == tokenizer.settings
    for battle in EDGE_BATTLES:
        assert again.encode(battle).ids.tolist() == tokenizer.encode(battle).ids.tolist()


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(ArtefactError, match=r"tokenizer\.json"):
        BattleTokenizer.from_folder(tmp_path)
