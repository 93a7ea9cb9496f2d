"""What `make demo` leaves: made once, and then read by the tests that need a served ensemble but not its scenario."""

import csv
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
BATTLES = ROOT / "build/demo/data/test.csv"
PREDICTIONS = ROOT / "build/demo/predictions.csv"


def demo_repository() -> Path:
    """The demo's model repository, made first if it is not there."""
    folder = ROOT / "build/demo/repository"
    if not folder.exists():
        done = subprocess.run(["make", "demo"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def repeated_battles(path: Path, times: int) -> Path:
    """Writes the demo's test file as often as asked, with ids of their own."""
    with BATTLES.open(newline="") as file:
        header, *rows = csv.reader(file)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [header, *([f"{turn}-{key}", *rest] for turn in range(times) for key, *rest in rows)]
        )
    return path
