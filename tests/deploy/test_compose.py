"""The stack as Compose itself reads it: interpolated, merged, one profile at a time. No engine is needed for that."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

COMPOSE = Path(__file__).parents[2] / "docker" / "compose.yaml"
TOOLS = "PREFERENCE_DEPLOY_TOOLS"


def compose(file: Path, *profiles: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """`docker compose config`, where `make check-deploy` runs and the machine has Compose."""
    if TOOLS not in os.environ:
        pytest.skip("`make check-deploy` runs the tests that need its tools")
    docker = ["docker", "compose"]
    if shutil.which("docker") is None or subprocess.run([*docker, "version"], capture_output=True).returncode:
        assert "CI" not in os.environ, "Compose is not installed: see .ci/install-container-tools"
        pytest.skip("Compose is not installed")
    chosen = [word for profile in profiles for word in ("--profile", profile)]
    line = [*docker, "--file", str(file), *chosen, "config", "--format", "json"]
    return subprocess.run(line, env={**os.environ, **variables}, capture_output=True, text=True, check=False)


def services(*profiles: str, **variables: str) -> dict[str, Any]:
    done = compose(COMPOSE, *profiles, **variables)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)["services"])


@pytest.mark.parametrize(
    ("profile", "name", "gpus"), [("cpu", "triton-cpu", 0), ("gpu", "triton", 1), ("two-gpus", "triton-two-gpus", 2)]
)
def test_each_profile_is_one_server_with_its_gpus_that_the_others_find_as_triton(
    profile: str, name: str, gpus: int
) -> None:
    assert set(services(profile)) == {name}
    assert set(services(profile, "front", "monitoring")) - {name} == {
        *("front", "prometheus", "alertmanager", "grafana"),
    }
    server = services(profile)[name]
    assert server["networks"]["default"]["aliases"] == ["triton"]
    devices = server.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    assert sum(device["count"] for device in devices) == gpus


def test_ports_are_variables_and_all_but_the_front_are_bound_to_this_machine() -> None:
    variables = {"HTTP": 1, "GRPC": 2, "METRICS": 3, "FRONT": 4, "PROMETHEUS": 5, "ALERTMANAGER": 6, "GRAFANA": 7}
    ports = {f"PREFERENCE_{name}_PORT": str(20000 + number) for name, number in variables.items()}
    found = services("cpu", "front", "monitoring", **ports)
    published = [port for service in found.values() for port in service["ports"]]
    assert {port["published"] for port in published} == set(ports.values())
    assert [port["published"] for port in published if port.get("host_ip") != "127.0.0.1"] == ["20004"]


def test_both_images_are_built_of_the_release_that_the_environment_names() -> None:
    found = services("cpu", "export", TRITON_IMAGE="mirror.example.com/triton", TRITON_TAG="27.01-py3")
    assert set(found) == {"triton-cpu", "export", "export-cpu"}
    for service in found.values():
        args = service["build"]["args"]
        assert (args["TRITON_IMAGE"], args["TRITON_TAG"]) == ("mirror.example.com/triton", "27.01-py3")


@pytest.mark.parametrize(
    ("right", "wrong"), [("cap_drop:", "cap_dorp:"), ("<<: *server", "<<: *severs"), ("count: 2", "count: two")]
)
def test_compose_finds_a_planted_fault(tmp_path: Path, right: str, wrong: str) -> None:
    text = COMPOSE.read_text()
    assert right in text
    (tmp_path / "compose.yaml").write_text(text.replace(right, wrong))
    assert compose(tmp_path / "compose.yaml", "two-gpus").returncode != 0
