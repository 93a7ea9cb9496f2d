"""The Kubernetes manifests, checked by the tools of `make check-deploy`; each tool is shown to find a planted fault."""

import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

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
def resources(manifests: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Each overlay by kind and name, the names without the hash of what is generated."""
    found = yaml.safe_load_all(manifests.read_text())
    generated = re.compile(r"-[a-z0-9]{10}$")
    return {(item["kind"], generated.sub("", item["metadata"]["name"])): item for item in found}


@pytest.fixture
def deployment(resources: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    """The pods of the server in each overlay."""
    return dict(resources["Deployment", "preference-ensemble"]["spec"]["template"]["spec"])


@pytest.fixture
def front(resources: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    """The pods of Envoy."""
    return dict(resources["Deployment", "preference-front"]["spec"]["template"]["spec"])


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


def test_a_pod_has_started_once_a_battle_was_answered_and_grpc_says_whether_it_is_ready(deployment: Any) -> None:
    (server,) = deployment["containers"]
    (script,) = server["startupProbe"]["exec"]["command"][1:]
    assert Path(script).name == "ready.py"
    patience = runpy.run_path(str(ROOT / "docker" / "ready.py"))["BATTLE_TIMEOUT_S"]
    assert server["startupProbe"]["timeoutSeconds"] > patience
    assert {"name": "grpc", "containerPort": server["readinessProbe"]["grpc"]["port"]} in server["ports"]


def test_envoy_has_the_configuration_of_the_compose_stack_and_its_release(resources: Any, front: Any) -> None:
    files = resources["ConfigMap", "preference-front"]["data"]
    assert files == {name: (ROOT / "docker" / "envoy" / name).read_text() for name in files}
    (envoy,) = front["containers"]
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]["front"]
    assert envoy["image"] == compose["image"]
    assert envoy["command"][1:] == compose["command"]
    mounts = {mount["mountPath"]: mount["name"] for mount in envoy["volumeMounts"]}
    named = set(re.findall(r"/etc/envoy/([\w.]+)", files["envoy.yaml"])) | {"envoy.yaml"}
    assert (set(files), mounts["/etc/envoy"]) == (named, "configuration")
    (secrets,) = (volume["projected"] for volume in front["volumes"] if volume["name"] == mounts["/etc/preference"])
    given = {item["path"] for source in secrets["sources"] for item in source["secret"]["items"]}
    assert given == set(re.findall(r"/etc/preference/([\w.]+)", "".join(files.values())))


def test_envoy_finds_the_servers_and_nobody_else_reaches_them(resources: Any, deployment: Any) -> None:
    envoy = yaml.safe_load(resources["ConfigMap", "preference-front"]["data"]["envoy.yaml"])
    asked = set()
    for cluster in envoy["static_resources"]["clusters"]:
        for endpoint in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]:
            address = endpoint["endpoint"]["address"]["socket_address"]
            asked.add((address["address"], address["port_value"]))
    service = resources["Service", "triton"]["spec"]
    assert service["clusterIP"] == "None"
    ports = {port["name"]: port["port"] for port in service["ports"]}
    assert asked - {("127.0.0.1", 9901)} == {("triton", port) for port in ports.values()}
    named = {port["name"]: port["containerPort"] for port in deployment["containers"][0]["ports"]}
    assert {named[port["targetPort"]] for port in service["ports"]} == set(ports.values())

    pods = resources["Deployment", "preference-ensemble"]["spec"]["template"]["metadata"]["labels"]
    fronts = resources["Deployment", "preference-front"]["spec"]["template"]["metadata"]["labels"]
    policy = resources["NetworkPolicy", "preference-ensemble"]["spec"]
    assert service["selector"] == policy["podSelector"]["matchLabels"]
    assert set(service["selector"].items()) <= set(pods.items())
    assert not set(service["selector"].items()) <= set(fronts.items())
    (clients,) = (rule for rule in policy["ingress"] if {port["port"] for port in rule["ports"]} & {"grpc", "http"})
    (source,) = clients["from"]
    assert set(source) == {"podSelector"}
    assert set(source["podSelector"]["matchLabels"].items()) <= set(fronts.items())
    assert not set(source["podSelector"]["matchLabels"].items()) <= set(pods.items())


def test_envoy_ends_after_its_drain(front: Any) -> None:
    (envoy,) = front["containers"]
    drain = int(envoy["command"][envoy["command"].index("--drain-time-s") + 1])
    pause = int(re.findall(r"sleep (\d+)", envoy["lifecycle"]["preStop"]["exec"]["command"][-1])[0])
    assert drain <= pause < front["terminationGracePeriodSeconds"]
