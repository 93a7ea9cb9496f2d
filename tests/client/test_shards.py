"""One shard of a folder: scored once for what is served, and again only when something of that changed."""

from pathlib import Path
from typing import Any

import pytest

from preference_client.shards import DONE, Shard, score_shard, shards_of
from preference_core import tensors
from preference_core.errors import UserError


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """Three battles."""
    battles, output = tmp_path / "battles", tmp_path / "predictions"
    battles.mkdir()
    (output / DONE).mkdir(parents=True)
    (battles / "one.csv").write_text("id,prompt,response_a,response_b\n" + "".join(f"{n},q{n},a,b\n" for n in range(3)))
    (found,) = shards_of(battles, output)
    return found


def scored(triton: Any, shard: Shard, *options: str) -> tuple[int, str]:
    """How many battles the server had to answer for a shard, and what is noted of it."""
    before = triton.received
    result = score_shard(shard, ["--url", triton.url, *options], str(shard.battles.parent))
    return triton.received - before, result.get("error", result.get("note"))


def test_a_shard_that_is_done_is_not_scored_again(triton: Any, shard: Shard) -> None:
    assert scored(triton, shard) == (3, "")
    assert scored(triton, shard) == (0, ", up to date")


def test_another_ensemble_other_options_or_another_input_score_it_again(triton: Any, shard: Shard) -> None:
    scored(triton, shard)
    triton.parameters[tensors.CONTENT_PARAMETER] = "f" * 64
    assert scored(triton, shard) == (3, "")
    assert scored(triton, shard, "--symmetric") == (3, "")
    shard.battles.write_text(shard.battles.read_text() + "3,q3,a,b\n")
    assert scored(triton, shard, "--symmetric") == (4, "")
    shard.output.write_text("spoilt")
    assert scored(triton, shard, "--symmetric") == (4, "")


def test_a_server_that_is_away_leaves_what_is_done(triton: Any, shard: Shard) -> None:
    scored(triton, shard)
    before = shard.output.read_bytes()
    triton.stop()
    _, said = scored(triton, shard)
    assert "can be reached" in said
    assert shard.output.read_bytes() == before


def test_files_of_one_name_and_files_that_are_no_battles_are_refused(shard: Shard, tmp_path: Path) -> None:
    (shard.battles.parent / "_SUCCESS").touch()
    assert shards_of(shard.battles.parent, tmp_path / "predictions") == [shard]
    (shard.battles.parent / "one.tsv").touch()
    with pytest.raises(UserError, match="would both be written"):
        shards_of(shard.battles.parent, tmp_path / "predictions")
    (shard.battles.parent / "one.tsv").rename(shard.battles.parent / "notes.txt")
    with pytest.raises(UserError, match="no known file extension"):
        shards_of(shard.battles.parent, tmp_path / "predictions")
