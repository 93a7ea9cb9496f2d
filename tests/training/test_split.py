"""Splitting: no prompt in two parts, labels in their shares, the same every time."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from preference_core.errors import ConfigError, UserError
from preference_core.files.rows import read_rows
from preference_training.battles.rows import read_labelled
from preference_training.battles.split import PARTS, Split, assigned, make_split, sampled
from preference_training.synthetic.battles import generate
from preference_training.synthetic.write import write_battles

LABELS = ("winner_model_a", "winner_model_b", "winner_tie")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """1,200 generated battles, many of which share a prompt."""
    path = tmp_path_factory.mktemp("source") / "battles.csv"
    write_battles(path, generate(1200, 3, "train"))
    return path


def turns(text):
    return [turn or "" for turn in json.loads(text)]


def read_parts(folder):
    return {part: list(read_rows(folder / f"{part}.csv")) for part in PARTS}


def test_every_battle_lands_in_one_part_as_it_was(source, tmp_path):
    make_split(tmp_path, Split(str(source)), LABELS)
    parts = read_parts(tmp_path)
    rows = sorted((row for part in parts.values() for row in part), key=lambda row: row["id"])
    assert rows == sorted(read_rows(source), key=lambda row: row["id"])


def test_no_prompt_lands_in_two_parts_whatever_its_case_and_spaces(source, tmp_path):
    rows = list(read_rows(source))
    assert max(Counter(row["prompt"] for row in rows).values()) > 3
    for index, row in enumerate(rows):
        if index % 2:
            row["prompt"] = json.dumps(["  " + turn.upper() + " " for turn in json.loads(row["prompt"])])
    changed = tmp_path / "changed.csv"
    with changed.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    make_split(tmp_path, Split(str(changed)), LABELS)
    part_of = {}
    for part in PARTS:
        for battle in read_labelled(tmp_path / f"{part}.csv", LABELS).battles:
            prompt = tuple(" ".join(turn.split()).lower() for turn in battle.prompt)
            assert part_of.setdefault(prompt, part) == part
    assert len(part_of) > 100


def test_each_battle_is_a_test_battle_of_one_fold_and_no_prompt_is_on_both_sides(source, tmp_path):
    judged = Counter()
    for fold in range(5):
        folder = tmp_path / str(fold)
        folder.mkdir()
        make_split(folder, Split(str(source), fold=fold, folds=5), LABELS)
        parts = {part: read_labelled(folder / f"{part}.csv", LABELS) for part in PARTS}
        judged.update(parts["test"].ids)
        prompts = [{battle.prompt for battle in parts[part].battles} for part in PARTS]
        assert not prompts[2] & (prompts[0] | prompts[1])
        for part, share in zip(PARTS, (0.7, 0.1, 0.2), strict=True):
            assert len(parts[part].ids) / 1200 == pytest.approx(share, abs=0.02)
    assert set(judged.values()) == {1}
    assert len(judged) == 1200


def test_parts_and_labels_have_their_shares_within_two_per_cent(source, tmp_path):
    details = make_split(tmp_path, Split(str(source)), LABELS)
    whole = np.bincount(read_labelled(source, LABELS).targets) / 1200
    for part, share in zip(PARTS, (0.7, 0.1, 0.2), strict=True):
        assert details["battles"][part] / 1200 == pytest.approx(share, abs=0.02)
        assert list(details["label_shares"][part].values()) == pytest.approx(whole.tolist(), abs=0.02)


def test_length_buckets_keep_their_shares_and_become_a_column(source, tmp_path):
    make_split(tmp_path, Split(str(source), length_buckets=4), LABELS)
    parts = read_parts(tmp_path)
    rows = [row for part in parts.values() for row in part]
    leads = {
        row["id"]: len(" ".join(turns(row["response_a"]))) - len(" ".join(turns(row["response_b"]))) for row in rows
    }
    edges = np.quantile(list(leads.values()), [0.25, 0.5, 0.75])
    for row in rows:
        assert int(row["length_bucket"]) == np.searchsorted(edges, leads[row["id"]], side="right")
    whole = np.bincount([int(row["length_bucket"]) for row in rows]) / len(rows)
    assert whole.tolist() == pytest.approx([0.25] * 4, abs=0.02)
    for part in parts.values():
        shares = np.bincount([int(row["length_bucket"]) for row in part], minlength=4) / len(part)
        assert shares.tolist() == pytest.approx(whole.tolist(), abs=0.05)
    assert read_labelled(tmp_path / "train.csv", LABELS).ids == tuple(row["id"] for row in parts["train"])


def test_without_shared_prompts_no_label_is_one_battle_above_its_share():
    targets = np.random.default_rng(0).choice(3, 997, p=(0.5, 0.3, 0.2))
    shares = (0.7, 0.1, 0.2)
    parts = assigned(targets, range(997), shares, seed=1)
    for part, share in enumerate(shares):
        excess = np.bincount(targets[parts == part], minlength=3) - share * np.bincount(targets)
        assert excess.max() < 1
        assert excess.min() > -2


def test_the_same_seed_gives_the_same_files_and_another_seed_others(source, tmp_path):
    written = []
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        make_split(tmp_path / name, Split(str(source), seed=seed), LABELS)
        written.append((tmp_path / name / "test.csv").read_bytes())
    assert written[0] == written[1] != written[2]


def test_a_sample_keeps_the_shares_of_the_labels():
    targets = np.repeat([0, 1, 2], [500, 300, 201])
    chosen = sampled(targets, 100, seed=0)
    assert len(set(chosen.tolist())) == 100
    assert np.bincount(targets[chosen]).tolist() == [50, 30, 20]
    assert chosen.tolist() != list(range(100))
    with pytest.raises(UserError, match="there are 1001 battles"):
        sampled(targets, 1002, seed=0)


def test_parquet_with_a_winner_column_is_split_and_keeps_its_columns(tmp_path):
    count = 60
    table = {
        "id": [f"battle-{index}" for index in range(count)],
        "prompt": [["is it", None] if index % 7 == 0 else [f"is it {index}?", "and?"] for index in range(count)],
        "response_a": [["yes", "/"]] * count,
        "response_b": [["no", "no"]] * count,
        "winner": ["model_a" if index % 3 else "model_b" for index in range(count)],
        "language": ["English"] * count,
    }
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "battles.parquet")
    make_split(tmp_path, Split(str(tmp_path / "battles.parquet"), sample=50), ("model_a", "model_b"))
    assert sum(len(rows) for rows in read_parts(tmp_path).values()) == 50
    data = read_labelled(tmp_path / "train.csv", ("model_a", "model_b"))
    assert data.battles[0].response_a == ("yes", "/")
    assert next(read_rows(tmp_path / "test.csv"))["language"] == "English"
    expected = {
        identity: int(winner == "model_b") for identity, winner in zip(table["id"], table["winner"], strict=True)
    }
    assert dict(zip(data.ids, data.targets.tolist(), strict=True)).items() <= expected.items()


def test_a_number_is_an_id_even_if_it_is_zero(tmp_path):
    columns = {
        "prompt": [f"is it {index}?" for index in range(30)],
        "response_a": ["yes"] * 30,
        "response_b": ["no"] * 30,
    }
    table = pyarrow.table({"id": range(30), **columns, "winner": ["model_a"] * 30})
    pyarrow.parquet.write_table(table, tmp_path / "battles.parquet")
    make_split(tmp_path, Split(str(tmp_path / "battles.parquet")), ("model_a", "model_b"))
    ids = sorted(int(row["id"]) for rows in read_parts(tmp_path).values() for row in rows)
    assert ids == list(range(30))


def test_text_that_no_file_holds_is_replaced(tmp_path):
    row = {"prompt": "why? \ud83d", "response_a": "yes", "response_b": "no", "winner": "model_a"}
    lines = [json.dumps({"id": number, **row, "model_a": f"m{number}"}) for number in range(30)]
    source = tmp_path / "battles.jsonl"
    source.write_text("\n".join(line.replace("why?", f"why {n}?") for n, line in enumerate(lines)))
    make_split(tmp_path, Split(str(source)), ("model_a", "model_b"))
    assert next(read_rows(tmp_path / "test.csv"))["prompt"].endswith("? \ufffd")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": 0.8}, "sum to 1.1, expected 1"),
        ({"train": 1.0, "validation": 0.0, "test": 0.0}, "`train` is 1.0"),
        ({"sample": 2}, "`sample` is 2"),
        ({"seed": -1}, "`seed` is -1, expected at least 0"),
        ({"folds": 4}, "`test` is 0.2, expected 1 / 4"),
        ({"folds": 5, "fold": 5}, "`fold` is 5, expected 0 to 4"),
        ({"fold": 1}, "`fold` is 1, expected 0 to 0"),
    ],
    ids=["sum", "all", "sample", "seed", "folds", "fold", "no folds"],
)
def test_shares_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Split("battles.csv", **wrong)


def test_a_row_that_is_no_labelled_battle_is_named(source, tmp_path):
    broken = tmp_path / "broken.csv"
    broken.write_text(source.read_text(encoding="utf-8") + "1,a,b,[],[],[],0,0,0\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"broken.csv`, line 1202: .*exactly one"):
        make_split(tmp_path, Split(str(broken)), LABELS)


def test_the_command_splits_once_and_says_what_came_of_it(workplace, source, train):
    text = Path("small.toml").read_text(encoding="utf-8")
    start = text.index("[training.battles]")
    table = f'[training.split]\nsource = "{source}"\nsample = 300\n'
    Path("small.toml").write_text(text[:start] + table, encoding="utf-8")
    first = train("split", "small.toml")
    assert first.exit_code == 0, first.stderr
    assert first.stderr.startswith("build/small/data: battles (train 2")
    assert Path("build/small/data/manifest.json").is_file()
    assert train("split", "small.toml").stderr == "build/small/data: up to date\n"


def test_weights_that_are_fitted_later_need_not_be_there_to_split(workplace, source, train):
    text = Path("small.toml").read_text(encoding="utf-8")
    table = f'[training.split]\nsource = "{source}"\n[combine]\ninclude = "weights.toml"\n'
    Path("small.toml").write_text(text[: text.index("[training.battles]")] + table, encoding="utf-8")
    result = train("split", "small.toml")
    assert result.exit_code == 0, result.stderr


def test_generated_battles_are_split_from_one_file(workplace, train):
    train("generate", "small.toml")
    alone = read_labelled(Path("build/small/data/train.csv"), LABELS)
    bases = {path: path.read_bytes() for path in Path("build/small/bases").rglob("*") if path.is_file()}
    with Path("small.toml").open("a", encoding="utf-8") as file:
        file.write('\n[training.split]\nsource = "build/small/source/battles.csv"\nlength_buckets = 2\n')
    generated = train("generate", "small.toml")
    assert generated.exit_code == 0, generated.stderr
    source = read_labelled(Path("build/small/source/battles.csv"), LABELS)
    assert len(source.ids) == 32 + 16 + 24
    assert source.ids[:32] == alone.ids
    # The bases do not depend on where the battles lie.
    assert generated.stderr.count("up to date") == 2
    assert {path: path.read_bytes() for path in Path("build/small/bases").rglob("*") if path.is_file()} == bases
    split = train("split", "small.toml")
    assert split.exit_code == 0, split.stderr  # the generated parts of before give way
    parts = read_parts(Path("build/small/data"))
    assert sorted(row["id"] for rows in parts.values() for row in rows) == sorted(source.ids)
    assert "length_bucket" in parts["train"][0]
    # A split of somebody's file never gives way to generated battles.
    text = Path("small.toml").read_text(encoding="utf-8")
    Path("small.toml").write_text(text[: text.index("[training.split]")], encoding="utf-8")
    assert "is not a folder of battles that this command made" in train("generate", "small.toml").stderr


def test_generated_battles_and_a_split_of_another_file_are_refused(workplace, train):
    with Path("small.toml").open("a", encoding="utf-8") as file:
        file.write('\n[training.split]\nsource = "battles.csv"\n')
    for command in ("split", "generate"):
        result = train(command, "small.toml")
        assert result.exit_code == 2
        assert "`training.split.source` is `battles.csv`" in result.stderr
        assert "hint: Set it to `build/small/source/battles.csv`, or remove `[training.battles]`." in result.stderr


def test_a_configuration_without_a_split_is_refused(workplace, train):
    result = train("split", "small.toml")
    assert result.exit_code == 2
    assert "has no `[training.split]`" in result.stderr
