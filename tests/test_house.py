"""The walls of the house: who may import whom, and that each distribution declares what it needs."""

import ast
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = ("core", "training", "export", "client", "embedded")
#: Folders of what only the server imports: they travel as data.
SERVER_FOLDERS = {"backends"}


def modules_of(part):
    folder = ROOT / part / f"preference_{part}"
    return sorted(path for path in folder.rglob("*.py") if not SERVER_FOLDERS & set(path.relative_to(folder).parts))


def imports_of(path):
    """Top-level packages that a file imports, and the full module names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            yield node.module


@pytest.mark.parametrize("part", DISTRIBUTIONS)
def test_a_distribution_imports_only_itself_and_the_contract(part):
    assert modules_of(part)
    allowed = {f"preference_{part}", "preference_core"}
    for path in modules_of(part):
        for name in imports_of(path):
            package = name.partition(".")[0]
            assert package in allowed or not package.startswith("preference_"), f"{path} imports {name}"


#: Rooms in the order that data passes through them: a room imports itself, the rooms before it, and modules beside the
#: rooms that import no room themselves.
ROOMS = {
    "core": ("artefacts", "battles", "files", "ensemble", "triton"),
    "export": ("artefacts", "checkpoint", "graph", "original", "engine", "gate", "repository"),
    "training": ("statistics", "battles", "fit", "evaluation", "combining", "synthetic", "terminal"),
}


def rooms_imported(part, path):
    """The rooms that a module of `part` imports from, and the modules beside the rooms."""
    package = f"preference_{part}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.split(".")[0] == package:
            below = node.module.split(".")[1:]
            yield from [below[0]] if below else [alias.name for alias in node.names]


@pytest.mark.parametrize("part", ROOMS)
def test_a_room_imports_only_rooms_that_come_before_it(part):
    folder = ROOT / part / f"preference_{part}"
    rooms = ROOMS[part]
    assert {path.name for path in folder.iterdir() if (path / "__init__.py").is_file()} == set(rooms)
    assert all(len(list((folder / room).glob("*.py"))) <= 16 for room in rooms)
    for path in modules_of(part):
        room = path.relative_to(folder).parts[0]
        if room not in rooms:
            continue
        for name in rooms_imported(part, path):
            if name in rooms:
                assert rooms.index(name) <= rooms.index(room), f"{path} imports from the later room `{name}`"
            elif (folder / f"{name}.py").is_file():
                leaf = set(rooms_imported(part, folder / f"{name}.py"))
                assert not leaf & set(rooms), f"{path} imports `{name}`, which imports {sorted(leaf)}"


def test_one_module_knows_the_paths_below_the_build_folder():
    texts = {path: path.read_text(encoding="utf-8") for part in DISTRIBUTIONS for path in modules_of(part)}
    knowing = [path.name for path, text in texts.items() if '"build")' in text or '"build/' in text]
    assert knowing == ["folders.py"]


def test_the_architecture_names_every_room():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [room for rooms in ROOMS.values() for room in rooms if f"| `{room}` |" not in text] == []


def test_the_tree_of_errors_is_drawn_whole():
    """Every class below `PreferenceError`, wherever it is, stands in the docstring of `preference_core.errors`."""
    parents = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for part in DISTRIBUTIONS
        for path in modules_of(part)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    tree = {"PreferenceError"}
    while found := {name for name, bases in parents.items() if bases & tree} - tree:
        tree |= found
    errors = ast.parse((ROOT / "core" / "preference_core" / "errors.py").read_text(encoding="utf-8"))
    drawing = (ast.get_docstring(errors) or "").split()
    assert len(tree) >= 15
    assert tree - set(drawing) == set()


def test_the_server_models_import_only_the_contract():
    paths = sorted((ROOT / "model_repository").glob("*/1/model.py"))
    assert [path.parts[-3] for path in paths] == ["combine", "combine_symmetric", "tokenize"]
    for path in paths:
        assert {name.partition(".")[0] for name in imports_of(path)} == {
            "preference_core",
            "triton_python_backend_utils",
        }


def test_only_the_connection_of_the_client_speaks_grpc():
    for path in modules_of("client"):
        packages = {name.partition(".")[0] for name in imports_of(path)}
        assert path.name == "connection.py" or not packages & {"grpc", "tritonclient"}, path


def projects():
    """What each distribution's `pyproject.toml` says of it."""
    return {part: tomllib.loads((ROOT / part / "pyproject.toml").read_text())["project"] for part in DISTRIBUTIONS}


def test_nobody_waits_at_a_simple_queue():
    """Its `get` waits forever where a timeout passes between its two attempts (CPython 3.11): seen once in a client."""
    for path in chain.from_iterable(map(modules_of, DISTRIBUTIONS)):
        assert "= SimpleQueue(" not in path.read_text(encoding="utf-8"), path


def test_the_distributions_have_one_version_and_require_the_contract_of_that_version():
    (version,) = {project["version"] for project in projects().values()}
    for part, project in projects().items():
        assert f'__version__ = "{version}"' in (ROOT / part / f"preference_{part}" / "__init__.py").read_text()
        assert (f"preference-core=={version}" in project["dependencies"]) == (part != "core")


def test_a_dependency_has_one_floor_wherever_it_is_declared():
    floors = {}
    for project in projects().values():
        for text in chain(project["dependencies"], *project.get("optional-dependencies", {}).values()):
            needed = Requirement(text)
            if not needed.name.startswith("preference-"):
                (floor,) = (part.version for part in needed.specifier if part.operator == ">=")
                floors.setdefault(canonicalize_name(needed.name), set()).add(floor)
    assert len(floors) >= 20
    assert {name: found for name, found in floors.items() if len(found) > 1} == {}


@pytest.mark.slow
@pytest.mark.parametrize("part", DISTRIBUTIONS)
def test_a_distribution_imports_in_an_environment_with_only_its_declared_dependencies(part, bare_environment, tmp_path):
    extra = "[server]" if part == "embedded" else ""  # half of it runs inside the server
    python = bare_environment(tmp_path / "venv", f"preference-{part}{extra}")
    folders = {str(ROOT / needed) for needed in ("core", part)}
    next((tmp_path / "venv").rglob("site-packages")).joinpath("sources.pth").write_text("\n".join(folders))
    names = [
        ".".join(path.relative_to(ROOT / part).with_suffix("").parts).removesuffix(".__init__")
        for path in modules_of(part)
        if path.name != "__main__.py"
    ]
    result = subprocess.run(
        [python, "-I", "-c", "import importlib, sys; [importlib.import_module(n) for n in sys.argv[1:]]", *names],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
