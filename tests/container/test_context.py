"""What a build of the image is given: listed by a real build, with secrets planted all over the tree."""

import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PLANTED = (
    ".env",
    ".git/config",
    "id_rsa",
    "build/x",
    "configs/credentials.toml",
    "core/.env",
    "core/preference_core/.env",
    "core/preference_core/token.pem",
    "core/preference_core/text/model.safetensors",
    "core/preference_core/__pycache__/errors.cpython-311.pyc",
    "docker/.env",
    "export/preference_export/checkpoint/adapter.safetensors",
    "requirements/.env",
    "docker/envoy/server.key",
    "docker/requirements.txt.orig",
    "secrets/server.key",
)


def test_a_build_is_given_what_the_image_is_made_of_and_no_secret(engine: Any, tmp_path: Path) -> None:
    tree, seen = tmp_path / "tree", tmp_path / "seen"
    for part in ("core", "export", "requirements", "docker"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in PLANTED:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("s3cret")
    # The build of the image with all that it was given for its result.
    (tree / "docker" / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    to = f"type=local,dest={seen}"
    engine("build", "--file", tree / "docker/Dockerfile", "--output", to, tree, DOCKER_BUILDKIT="1")
    needed = {Path("requirements/main.txt")}
    for part in ("core", "export"):
        needed |= {path.relative_to(ROOT) for path in (ROOT / part / f"preference_{part}").rglob("*.py")}
        needed |= {Path(part) / name for name in ("pyproject.toml", f"preference_{part}/py.typed")}
    names = ("entrypoint.py", "fetch.py", "ready.py", "requirements.txt", "requirements-build.txt")
    needed |= {Path("docker") / name for name in names}
    assert {path.relative_to(seen) for path in seen.rglob("*") if path.is_file()} == needed
