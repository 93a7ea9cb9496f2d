"""The committed configurations: whose bases they train, and that their commands run in the documented order."""

from pathlib import Path

from preference_core.settings import load_config

CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_light_ensemble_is_trained_from_the_bases_that_were_published():
    bases = [member.base for member in load_config(CONFIGS / "light.toml").members]
    assert bases == ["google/gemma-2-2b", "meta-llama/Llama-3.2-3B"]
