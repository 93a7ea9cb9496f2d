"""The Makefile works in a checkout whose path has characters that make and shells read otherwise."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMAND = '#!/bin/sh\necho "$0 $* $PREFERENCE_SERVER_PYTHON"\n'


@pytest.mark.parametrize("name", ["with space", "par(en)", "é", "co:lon", "q'uote"])
def test_targets_run_the_checkout_s_own_commands_whatever_its_path(tmp_path: Path, name: str) -> None:
    checkout = tmp_path / name
    for environment, command in ((".venv", "preference-export"), (".venv-server", "preference-serve")):
        (checkout / environment / "bin").mkdir(parents=True)
        (checkout / environment / "bin" / command).write_text(COMMAND)
        (checkout / environment / "bin" / command).chmod(0o755)
    shutil.copy(ROOT / "Makefile", checkout)
    for file in [*ROOT.glob("*/pyproject.toml"), *ROOT.glob("requirements/*.txt")]:
        (checkout / file.parent.name).mkdir(exist_ok=True)
        shutil.copy(file, checkout / file.parent.name)
    for environment in (".venv", ".venv-server"):
        (checkout / environment / "bin/.installed").touch()
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    made = subprocess.run(
        ["make", "--silent", "export", "serve", "CONFIG=my.toml"],
        cwd=checkout,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    python = checkout / ".venv-server/bin/python"
    assert made.stdout.splitlines() == [
        f".venv/bin/preference-export all my.toml {python}",
        f".venv-server/bin/preference-serve my.toml {python}",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
