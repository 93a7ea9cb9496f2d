"""The export image on a real engine: what it exports is served by the other image; `make test-container-export`.

The stand-in has no TensorRT, so that only the path of ONNX Runtime is shown.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from demo_files import BATTLES, PREDICTIONS, ROOT, demo_repository

pytestmark = pytest.mark.skipif(
    os.environ.get("PREFERENCE_CONTAINER_TESTS") != "export", reason="`make test-container-export` runs these tests"
)


@pytest.fixture(scope="session")
def export_base(engine: Any, base: dict[str, str]) -> dict[str, str]:
    """The base with all wheels that a build without a network needs."""
    if base["TRITON_IMAGE"] != "preference-standin":
        return base
    tag = f"{base['TRITON_TAG']}-export"
    with tempfile.TemporaryDirectory() as context:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        pip += ["--dest", f"{context}/wheels", "--constraint", str(ROOT / "requirements/main.txt")]
        subprocess.run([*pip, "setuptools", "torch", str(ROOT / "core"), f"{ROOT}/export[calibration]"], check=True)
        for wheel in Path(context, "wheels").glob("preference_*"):
            wheel.unlink()  # They are built anew by every download: the layer would never be the same.
        lines = f"FROM preference-standin:{base['TRITON_TAG']}\nCOPY wheels /opt/wheels\n"
        (Path(context) / "Dockerfile").write_text(lines)
        engine("build", "--network", "none", "--tag", f"preference-standin:{tag}", context, DOCKER_BUILDKIT="1")
    return {"TRITON_IMAGE": "preference-standin", "TRITON_TAG": tag, "TENSORRT": "none"}


@pytest.fixture(scope="session")
def export(stack: Any, export_base: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The stack with the export image, and with a folder that holds the demo as it was trained."""
    demo_repository()
    work = tmp_path_factory.mktemp("work")
    for part in ("adapters", "bases", "baseline", "data"):
        shutil.copytree(ROOT / "build/demo" / part, work / "build/demo" / part)
    shutil.copytree(ROOT / "configs", work / "configs")
    image = f"{stack.variables['COMPOSE_PROJECT_NAME']}-export:test"
    owner = f"{os.getuid()}:{os.getgid()}"
    variables = {"PREFERENCE_EXPORT_IMAGE": image, "PREFERENCE_WORK": str(work), "PREFERENCE_USER": owner}
    yield type(stack)(stack.engine, stack.variables | export_base | variables)
    stack.engine("image", "rm", "--force", image)


@pytest.fixture(scope="session")
def built(export: Any, record_testsuite_property: Any) -> Any:
    """The built image."""
    start = time.monotonic()
    export.compose("build", "export-cpu", timeout_s=1200.0)
    facts = export.engine.inspect(export.variables["PREFERENCE_EXPORT_IMAGE"])
    record_testsuite_property("export image", f"{time.monotonic() - start:.0f} s, {facts['Size'] / 1e9:.1f} GB")
    return export


def test_what_the_export_image_exports_is_served_with_the_demos_scores(built: Any, stack: Any, tmp_path: Path) -> None:
    # Its models are tiny: a second thread only waits for the first.
    one_thread = ("--env", "OMP_NUM_THREADS=1")
    said = built.compose("run", "--rm", *one_thread, "export-cpu", "all", "configs/demo.toml", timeout_s=1200.0)
    repository = Path(built.variables["PREFERENCE_WORK"]) / "build/demo/repository"
    assert repository.is_dir(), said
    serving = stack.serving(repository)
    serving.up()
    try:
        line = [str(Path(sys.executable).with_name("preference-score")), str(BATTLES)]
        line += ["-o", str(tmp_path / "predictions.csv"), "--url", "127.0.0.1:18001"]
        subprocess.run(line, check=True, capture_output=True, timeout=120)
    finally:
        serving.down()
    assert (tmp_path / "predictions.csv").read_bytes() == PREDICTIONS.read_bytes()


def test_an_export_is_confined_to_the_folder_it_is_given(built: Any) -> None:
    look = "import os; open('/work/build/seen', 'w').close(); print(os.getuid()); open('/etc/planted', 'w')"
    said = built.compose("run", "--rm", "--entrypoint", "python3", "export-cpu", "-c", look, check=False)
    assert "Read-only file system" in said
    seen = Path(built.variables["PREFERENCE_WORK"]) / "build/seen"
    assert seen.stat().st_uid == os.getuid()


def test_without_tensorrt_in_the_base_an_engine_is_refused(built: Any) -> None:
    work = Path(built.variables["PREFERENCE_WORK"])
    text = (work / "configs/demo.toml").read_text()
    (work / "configs/engines.toml").write_text(text.replace('engine = "onnxruntime"', 'engine = "tensorrt"'))
    said = built.compose("run", "--rm", "export-cpu", "all", "configs/engines.toml", check=False)
    assert "TensorRT is not installed here" in said
    assert "Traceback" not in said


def test_a_base_that_lacks_tensorrt_is_no_export_image_unless_that_is_said(export: Any) -> None:
    required = type(export)(export.engine, export.variables | {"TENSORRT": "required"})
    assert "The base has no libnvinfer.so" in required.compose("build", "export-cpu", check=False, timeout_s=1200.0)
