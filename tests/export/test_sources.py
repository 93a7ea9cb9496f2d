"""The committed Triton sources are those that the exporter writes."""

from pathlib import Path

from preference_core.ensemble.loading import load_config
from preference_export.repository.assemble import write_sources

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "lmsys.toml"
COMMITTED = ROOT / "model_repository"


def test_the_committed_sources_are_those_of_the_default_ensemble(tmp_path):
    written = {path.relative_to(tmp_path) for path in write_sources(load_config(CONFIG), tmp_path)}
    committed = {path.relative_to(COMMITTED) for path in COMMITTED.rglob("*") if path.suffix in (".py", ".pbtxt")}
    assert committed == written, "write them again with `make sources`"
    for name in written:
        assert (COMMITTED / name).read_text() == (tmp_path / name).read_text(), f"{name}: run `make sources`"
