"""What an export is made by."""

from pathlib import Path

from preference_export.artefacts import versions


def test_every_module_of_the_exporter_and_of_the_contract_is_part_of_the_fingerprint(monkeypatch):
    """A changed module in any room means another export; only then is an old one not taken for current."""
    seen = {}
    monkeypatch.setattr(versions, "fingerprint", lambda value: seen.update(value) or "0" * 64)
    versions._source_hash.cache_clear()
    try:
        versions.versions()
    finally:
        versions._source_hash.cache_clear()
    root = Path(__file__).parents[2]
    modules = [path for part in ("export", "core") for path in (root / part / f"preference_{part}").rglob("*.py")]
    assert {"/".join(path.relative_to(root).parts[1:]) for path in modules} == seen.keys()
    assert "preference_export/graph/packed.py" in seen
