"""Nothing in a repository is run or read that its manifest does not name: at the start, at a restart, while serving."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from preference_core.artefacts.manifest import Manifest, write_manifest
from preference_core.errors import ArtefactError
from preference_embedded.launcher import Options, TritonServer

CONFIG = """
backend: "python"
input [ { name: "x" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""
NO_OVERRIDE = "-dac_override,-dac_read_search"
SERVE = """
import sys
from pathlib import Path
from preference_core.errors import PreferenceError, describe
from preference_embedded.launcher import Options, TritonServer
try:
    TritonServer(Options(Path(sys.argv[1]))).start()
except PreferenceError as error:
    print(describe(error))
"""
HARMLESS = """
class TritonPythonModel:
    def execute(self, requests):
        return []
"""


@pytest.fixture
def repository(tmp_path: Path, write_model: Callable[..., Path]) -> Path:
    """A repository with one Python model, and its manifest."""
    folder = tmp_path / "repository"
    write_model(folder, "quiet", CONFIG, HARMLESS)
    write_manifest(folder, Manifest("repository", {}))
    return folder


@pytest.fixture
def planted(tmp_path: Path) -> tuple[str, Path]:
    """Python code that leaves a file behind when it runs, and that file."""
    trace = tmp_path / "ran"
    return f"open({str(trace)!r}, 'w').close()\n", trace


def serve_once(repository: Path) -> None:
    with TritonServer(Options(repository, stop_timeout_s=0.1)):
        pass


def test_serving_writes_no_byte_code_and_so_a_repository_serves_again(repository: Path) -> None:
    before = sorted(repository.rglob("*"))
    serve_once(repository)
    assert sorted(repository.rglob("*")) == before
    serve_once(repository)


def test_what_lies_in_the_working_directory_is_not_run(
    repository: Path, planted: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, trace = planted
    for name in ("1/model.py", "numpy.py", "triton_python_backend_utils.py"):
        (tmp_path / "working" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "working" / name).write_text(code)
    monkeypatch.chdir(tmp_path / "working")
    serve_once(repository)
    assert not trace.exists()


def test_planted_byte_code_is_refused_before_anything_starts(
    repository: Path, planted: tuple[str, Path], tmp_path: Path
) -> None:
    code, trace = planted
    model = repository / "quiet/1/model.py"
    (tmp_path / "other").mkdir()
    source = tmp_path / "other/model.py"
    source.write_text(code + HARMLESS)
    cache = model.parent / "__pycache__/model.cpython-311.pyc"
    compiler = "import py_compile, sys; py_compile.compile(sys.argv[1], cfile=sys.argv[2], invalidation_mode="
    compiler += "py_compile.PycInvalidationMode.UNCHECKED_HASH)"
    python = Options(repository).python
    subprocess.run([python, "-c", compiler, str(source), str(cache)], check=True)
    with pytest.raises(ArtefactError, match=r"model\.cpython-311\.pyc` is not in the manifest"):
        serve_once(repository)
    assert not trace.exists()
    with TritonServer(Options(repository, verify=False, stop_timeout_s=0.1)):
        assert trace.exists(), "the planted code would have run"


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (lambda folder: (folder / "extra").mkdir(), "extra` is an empty folder that is not in the manifest"),
        (lambda folder: (folder / "quiet/2").mkdir(), "quiet/2` is an empty folder that is not in the manifest"),
        (lambda folder: os.mkfifo(folder / "quiet/1/pipe"), "pipe` is a named pipe"),
        (lambda folder: ((folder / "pipes").mkdir(), os.mkfifo(folder / "pipes/config.pbtxt")), "is a named pipe"),
        (lambda folder: (folder / "again").symlink_to("quiet"), "again` is a symbolic link"),
        (lambda folder: (folder / "quiet/config.pbtxt").write_bytes(b"\xff"), "cannot be read"),
        (
            lambda folder: write_manifest(folder, Manifest("member", {})),
            "is of the kind `member`, expected `repository`",
        ),
        (lambda folder: (folder / "manifest.json").write_text("[" * 100_000), r"manifest\.json` cannot be read"),
    ],
)
def test_what_the_manifest_does_not_name_is_one_error(
    repository: Path, plant: Callable[[Path], object], message: str
) -> None:
    plant(repository)
    with pytest.raises(ArtefactError, match=message):
        serve_once(repository)


def test_what_was_planted_while_serving_is_refused_at_the_restart(repository: Path, planted: tuple[str, Path]) -> None:
    code, trace = planted
    with TritonServer(Options(repository, stop_timeout_s=0.1)) as server:
        server.restart()
        model = repository / "quiet/1/model.py"
        state = model.stat()
        model.write_text((code + HARMLESS)[: state.st_size].ljust(state.st_size))
        os.utime(model, ns=(state.st_atime_ns, state.st_mtime_ns))
        with pytest.raises(ArtefactError, match=r"model\.py` was changed"):
            server.restart()
    assert not trace.exists()


@pytest.mark.parametrize(
    ("plant", "message", "hint"),
    [
        (lambda folder: (folder / "lost+found").mkdir(), "lost+found` is an empty folder", "use a folder below"),
        (lambda folder: (folder / ".ipynb_checkpoints").mkdir(), ".ipynb_checkpoints` is an empty folder", "Remove it"),
        (lambda folder: (folder / "quiet/.DS_Store").touch(), ".DS_Store` is not in the manifest", "Remove it."),
        (lambda folder: (folder / "lost+found").mkdir(0), "lost+found` cannot be read", "use a folder beside"),
        (lambda folder: (folder / "quiet/1/model.py").chmod(0), "model.py` cannot be read", "Make it readable"),
    ],
)
def test_what_a_file_system_or_a_tool_left_and_what_is_unreadable_is_one_error(
    repository: Path, plant: Callable[[Path], object], message: str, hint: str
) -> None:
    plant(repository)
    # Root reads everything, except without these capabilities.
    line = [] if os.getuid() else ["setpriv", f"--bounding-set={NO_OVERRIDE}", f"--inh-caps={NO_OVERRIDE}"]
    ended = subprocess.run(
        [*line, sys.executable, "-c", SERVE, str(repository)], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.stdout.count("\n") == 2, ended.stdout + ended.stderr
    assert message in ended.stdout.splitlines()[0]
    assert hint in ended.stdout.splitlines()[1]
