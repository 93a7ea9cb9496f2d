"""The Kubernetes manifests, checked by the tools of `make check-deploy`; each tool is shown to find a planted fault."""

import os
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "one-gpu", "two-gpus")
#: The releases that the Kubernetes project supports, and the one before them.
RELEASES = ("1.34", "1.35", "1.36", "1.37")
TOOLS = "PREFERENCE_DEPLOY_TOOLS"


def run(tool: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Runs a tool of the environment that `make check-deploy` made."""
    if TOOLS not in os.environ:
        pytest.skip("`make check-deploy` runs the tests that need its tools")
    line = [f"{os.environ[TOOLS]}/{tool}", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)


def rendered(overlay: Path) -> str:
    """What `kubectl apply --kustomize` would send."""
    result = run("kubectl", "kustomize", overlay)
    assert result.returncode == 0, result.stderr
    return result.stdout


def valid(manifests: Path, release: str) -> bool:
    """Whether every resource is one that the release knows and accepts; a kind without a schema counts as unknown."""
    result = run("kubernetes-validate", "--strict", "--kubernetes-version", f"{release}.0", manifests)
    lines = (result.stdout + result.stderr).splitlines()
    return (
        result.returncode == 0 and bool(lines) and all(line.startswith("INFO") and "passed" in line for line in lines)
    )


def secure(manifests: Path) -> bool:
    """Whether checkov has nothing to say beyond what `checkov.yaml` leaves out."""
    return run("checkov", "--config-file", KUBERNETES / "checkov.yaml", "--file", manifests).returncode == 0


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The rendered manifests of each overlay."""
    path = tmp_path / "manifests.yaml"
    path.write_text(rendered(KUBERNETES / "overlays" / request.param))
    return path


@pytest.mark.parametrize("release", RELEASES)
def test_every_overlay_is_valid_for_every_supported_release(manifests: Path, release: str) -> None:
    assert valid(manifests, release)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("readinessProbe:", "readynessProbe:"),
        ("kind: PodDisruptionBudget", "kind: PodDisruptionBudgets"),
        ("containerPort: 8001", "containerPort: eight"),
    ],
)
def test_the_validator_finds_a_wrong_key_kind_or_value(manifests: Path, right: str, wrong: str) -> None:
    text = manifests.read_text()
    assert right in text
    manifests.write_text(text.replace(right, wrong))
    assert not valid(manifests, RELEASES[-1])


def test_every_overlay_passes_the_security_checks(manifests: Path) -> None:
    assert secure(manifests)


def test_the_security_checks_find_a_writable_root(tmp_path: Path) -> None:
    path = tmp_path / "manifests.yaml"
    path.write_text(rendered(KUBERNETES / "overlays" / "cpu").replace("readOnlyRootFilesystem: true", ""))
    assert not secure(path)


def test_a_broken_patch_is_not_rendered(tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    patch = tmp_path / "kubernetes" / "overlays" / "cpu" / "resources.yaml"
    patch.write_text(patch.read_text().replace("name: preference-ensemble", "name: preference-ensamble"))
    assert run("kubectl", "kustomize", patch.parent).returncode != 0


@pytest.fixture
def deployment(manifests: Path) -> dict[str, Any]:
    """The Deployment of each overlay."""
    yaml = pytest.importorskip("yaml")
    (found,) = (item for item in yaml.safe_load_all(manifests.read_text()) if item["kind"] == "Deployment")
    return dict(found["spec"]["template"]["spec"])


def test_the_grace_period_covers_the_pause_and_the_drain(deployment: dict[str, Any]) -> None:
    (server,) = deployment["containers"]
    (_, pause) = server["lifecycle"]["preStop"]["exec"]["command"]
    killed_after = runpy.run_path(str(ROOT / "docker" / "entrypoint.py"))["KILL_AFTER_S"]
    assert deployment["terminationGracePeriodSeconds"] >= int(pause) + killed_after + 5


def test_every_mounted_volume_exists_and_shared_memory_is_memory(deployment: dict[str, Any]) -> None:
    volumes = {volume["name"]: volume["emptyDir"] for volume in deployment["volumes"]}
    containers = deployment["containers"] + deployment["initContainers"]
    assert {mount["name"] for container in containers for mount in container["volumeMounts"]} == set(volumes)
    assert volumes["shared-memory"]["medium"] == "Memory"
    assert all("sizeLimit" in volume for volume in volumes.values())


def test_the_repository_is_fetched_and_verified_before_the_server_starts(deployment: dict[str, Any]) -> None:
    (fetch,) = deployment["initContainers"]
    script, target = fetch["command"][1:]
    assert f"docker/{Path(script).name}" in (ROOT / "docker" / "Dockerfile").read_text()
    assert [mount["mountPath"] for mount in fetch["volumeMounts"]] == [target]
    names = {source["configMapRef"]["name"].rsplit("-", 1)[0] for source in fetch["envFrom"]}
    assert names == {"preference-repository"}
