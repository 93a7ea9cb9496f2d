"""The manifests as a real API server judges them, without anything being started; `make test-kubernetes`.

It needs the cluster of KUBECONFIG, such as one of kind, and the right to make a namespace in it.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = "PREFERENCE_DEPLOY_TOOLS"
NAMESPACE = f"preference-test-{os.getpid()}"
pytestmark = pytest.mark.skipif(
    TOOLS not in os.environ or "KUBECONFIG" not in os.environ,
    reason="KUBECONFIG names no cluster: `KUBECONFIG=FILE make test-kubernetes` tries the manifests on one",
)


def kubectl(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Runs kubectl on the cluster."""
    line = [f"{os.environ[TOOLS]}/kubectl", "--request-timeout=30s", *map(str, arguments)]
    return subprocess.run(
        line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


@pytest.fixture(scope="module")
def namespace() -> Iterator[None]:
    """The namespace of these tests, with the rules that the project's own has."""
    made = kubectl("create", "namespace", NAMESPACE)
    assert made.returncode == 0, made.stdout
    # Of a Deployment the rules for pods are only a warning, which `tried` counts as an error.
    kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/warn=restricted")
    yield
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture
def overlays(namespace: None, tmp_path: Path) -> Path:
    """A copy of the overlays, to be changed, all of them for that namespace."""
    for part in ("deploy", "docker/envoy"):
        shutil.copytree(ROOT / part, tmp_path / part)
    folder = tmp_path / "deploy/kubernetes/overlays"
    for overlay in folder.glob("*/kustomization.yaml"):
        overlay.write_text(overlay.read_text() + f"namespace: {NAMESPACE}\n")
    return folder


def tried(overlay: Path) -> "subprocess.CompletedProcess[str]":
    """What the API server says of an overlay; it keeps nothing."""
    flags = ("--server-side", "--dry-run=server", "--validate=strict", "--warnings-as-errors")
    return kubectl("apply", *flags, "--kustomize", overlay)


@pytest.mark.parametrize("name", ["cpu", "one-gpu", "two-gpus"])
def test_the_api_server_accepts_each_overlay(overlays: Path, name: str) -> None:
    done = tried(overlays / name)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("right", "wrong"), [("readinessProbe:", "readynessProbe:"), ("drop: [ALL]", "add: [SYS_ADMIN]")]
)
def test_the_api_server_refuses_a_planted_fault(overlays: Path, right: str, wrong: str) -> None:
    server = overlays.parent / "base/server.yaml"
    assert right in server.read_text()
    server.write_text(server.read_text().replace(right, wrong))
    assert tried(overlays / "cpu").returncode != 0
