"""The container as far as it can be checked without a Docker engine: linters, settings, its scripts run for real."""

import hashlib
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from preference_core import tensors
from preference_core.artefacts.manifest import Manifest, write_manifest

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()

#: The oldest release with the security fixes that this project relies on.
OLDEST_TRITON = (26, 7)
LOCKED = r'[\w.-]+==[\w.]+( ; python_version (<|>=) "3\.12" )?(\s*--hash=sha256:[0-9a-f]{64})+'


def tool(name: str) -> str:
    """The path of a command of the development environment; skips the test where it is not installed."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"`{name}` is not installed")
    return found


def test_the_dockerfile_passes_the_linter() -> None:
    result = subprocess.run([tool("hadolint"), DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (result.stdout + result.stderr, result.returncode) == ("", 0)


def test_the_linter_finds_what_it_should(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN cd /tmp && sudo apt-get install curl\n")
    result = subprocess.run([tool("hadolint"), tmp_path / "Dockerfile"], capture_output=True, text=True, check=False)
    assert result.returncode != 0


def _schema_check(path: Path) -> "subprocess.CompletedProcess[str]":
    line = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_the_compose_file_follows_the_compose_specification(tmp_path: Path) -> None:
    assert _schema_check(DOCKER / "compose.yaml").returncode == 0
    broken = tmp_path / "compose.yaml"
    broken.write_text((DOCKER / "compose.yaml").read_text().replace("cap_drop:", "cap_dorp:"))
    assert _schema_check(broken).returncode != 0


@pytest.fixture
def services() -> dict[str, Any]:
    """The services of the compose file, with anchors and merges resolved."""
    yaml = pytest.importorskip("yaml")
    services: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    return services


@pytest.fixture
def servers(services: dict[str, Any]) -> dict[str, Any]:
    """The services that run tritonserver."""
    return {name: service for name, service in services.items() if name.startswith("triton")}


def test_every_service_is_confined_and_only_the_front_is_reachable_from_elsewhere(services: dict[str, Any]) -> None:
    assert {name: service["profiles"] for name, service in services.items()} == {
        "triton": ["gpu"],
        "triton-two-gpus": ["two-gpus"],
        "triton-cpu": ["cpu"],
        "export": ["export"],
        "export-cpu": ["export"],
        "front": ["front"],
        "prometheus": ["monitoring"],
        "alertmanager": ["monitoring"],
        "grafana": ["monitoring"],
    }
    for name, service in services.items():
        assert name == "front" or {port.split(":")[0] for port in service.get("ports", ())} <= {"127.0.0.1"}
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_every_file_that_a_service_mounts_exists(services: dict[str, Any]) -> None:
    mounts = [volume for service in services.values() for volume in service["volumes"] if isinstance(volume, str)]
    files = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    assert len(files) == 6
    assert all((DOCKER / file).exists() for file in files)


def test_the_servers_read_their_repository_and_cannot_change_it(servers: dict[str, Any]) -> None:
    for service in servers.values():
        (models,) = service["volumes"]
        assert models["target"] == "/models"
        assert models["read_only"] is True


@pytest.mark.parametrize(("name", "count"), [("triton", 1), ("triton-two-gpus", 2), ("export", 1)])
def test_each_profile_reserves_its_gpus(services: dict[str, Any], name: str, count: int) -> None:
    (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": count, "capabilities": ["gpu"]}


@pytest.mark.parametrize("name", ["triton-cpu", "export-cpu"])
def test_without_a_gpu_none_is_reserved(services: dict[str, Any], name: str) -> None:
    assert "deploy" not in services[name]


def test_a_recent_release_is_pinned_and_in_one_place(servers: dict[str, Any]) -> None:
    (tag,) = re.findall(r"^ARG TRITON_TAG=(\S+)$", DOCKERFILE, re.MULTILINE)
    for service in servers.values():
        assert service["build"]["args"] == {"TRITON_IMAGE": None, "TRITON_TAG": None, "TENSORRT": None}
    year, month = map(int, tag.partition("-")[0].split("."))
    assert (year, month) >= OLDEST_TRITON


def test_the_export_image_is_of_the_servers_release_and_takes_tensorrt_from_it(services: dict[str, Any]) -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert set(bases) == {"${TRITON_IMAGE}:${TRITON_TAG}"}
    # No number of TensorRT's stands anywhere: the base's own library says it.
    assert re.findall(r'"tensorrt[\w-]*==(.*?)"', DOCKERFILE) == [
        "${version:?The base has no libnvinfer.so}.*",
        "$version.*",
    ]
    for name in ("export", "export-cpu"):
        assert services[name]["build"] == services["triton"]["build"] | {"target": "export"}


@pytest.mark.parametrize("libraries", [[], ["libnvinfer.so.11.4.0"], ["libnvinfer.so.11.4.0", "libnvinfer.so.10.9.0"]])
def test_tensorrts_bindings_are_those_of_the_one_library_in_the_base(tmp_path: Path, libraries: list[str]) -> None:
    (step,) = re.findall(r"^RUN (if \[ \"\$TENSORRT\" (?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)
    for name in libraries:
        (tmp_path / name).touch()
    (tmp_path / "libnvinfer.so.11").touch()
    (tmp_path / "python3").write_text('#!/bin/sh\nprintf "%s " "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    line = ["sh", "-c", step.replace("/usr /opt", str(tmp_path))]
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "TENSORRT": "required"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    if not libraries:
        assert done.returncode != 0
        assert "The base has no libnvinfer.so" in done.stderr
    elif len(libraries) == 1:
        assert "tensorrt-cu13==11.4.0.* tensorrt-cu13-bindings==11.4.0.* -c import tensorrt" in done.stdout
    else:
        assert "==11.4.0.*" not in done.stdout
    none = subprocess.run(line, env=environment | {"TENSORRT": "none"}, capture_output=True, text=True, check=False)
    assert (none.returncode, none.stdout) == (0, "")


def test_the_image_runs_as_a_user_and_checks_its_health() -> None:
    server = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    instructions = [line.split()[0] for line in server.splitlines() if re.match(r"[A-Z]+ ", line)]
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE) == ["1000:1000"] * 2
    assert "HEALTHCHECK" in instructions
    assert instructions.index("USER") > max(n for n, word in enumerate(instructions) if word in ("RUN", "COPY"))


def test_only_what_the_image_is_made_of_is_sent_to_the_builder() -> None:
    lines = [line for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] != "#"]
    assert lines[0] == "*"
    allowed = [line[1:] for line in lines if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", DOCKERFILE, re.MULTILINE)
    for source in " ".join(copied).split():
        assert any(path == source or path.startswith(f"{source}/") for path in allowed)
    for path in allowed:
        assert any(ROOT.glob(path))
    # Classic builders and buildah enter no folder that only `**` would reach.
    packages = [ROOT / part / f"preference_{part}" for part in ("core", "export")]
    programs = {path.parent for package in packages for path in package.rglob("*.py")}
    assert {f"{folder.relative_to(ROOT)}/*.py" for folder in programs} <= set(allowed)
    assert "# syntax" not in DOCKERFILE  # BuildKit would ask a registry for it.


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-build.txt"])
def test_every_package_of_the_image_is_locked_by_hash(name: str) -> None:
    text = (DOCKER / name).read_text().replace("\\\n", " ")
    packages = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert packages
    for package in packages:
        assert re.fullmatch(LOCKED, package)


def test_the_locked_packages_are_those_that_core_declares() -> None:
    import tomllib

    declared = tomllib.loads((ROOT / "core" / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.match(r"[\w-]+", requirement).group() for requirement in declared}  # type: ignore[union-attr]
    assert set(re.findall(r"^([\w-]+)==", (DOCKER / "requirements.txt").read_text(), re.MULTILINE)) == names


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder with a manifest."""
    folder = tmp_path / "models"
    (folder / "combine").mkdir(parents=True)
    (folder / "combine" / "config.pbtxt").write_text('name: "combine"\n')
    write_manifest(folder, Manifest("repository", {}))
    return folder


@pytest.fixture
def enter(tmp_path: Path, repository: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs the entrypoint with a `tritonserver` that prints its arguments."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, script in (("python3", f'exec {sys.executable} "$@"'), ("tritonserver", 'printf "%s\\n" "$@"')):
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        environment = {
            **os.environ,
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PREFERENCE_MODELS": str(repository),
            "PREFERENCE_ANSWERED": str(tmp_path / "answered"),
        }
        line = [str(DOCKER / "entrypoint.py"), *arguments]
        return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)

    return run


def test_a_verified_repository_is_served_with_model_control_closed(enter: Any, repository: Path) -> None:
    result = enter("--log-verbose=1")
    assert result.returncode == 0
    flags = result.stdout.splitlines()
    assert flags[0] == f"--model-repository={repository}"
    assert flags[-1] == "--log-verbose=1"
    assert {"--model-control-mode=none", "--disable-auto-complete-config", "--strict-readiness=true"} <= set(flags)


def test_traces_are_sent_where_the_environment_says_and_nowhere_without(
    enter: Any, servers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFERENCE_OTLP_ENDPOINT", raising=False)
    assert "--trace-config" not in enter().stdout
    monkeypatch.setenv("PREFERENCE_OTLP_ENDPOINT", "http://collector:4318/v1/traces")
    flags = enter("--trace-config=rate=9").stdout.splitlines()
    assert "--trace-config=opentelemetry,url=http://collector:4318/v1/traces" in flags
    # Of two settings the server takes the last.
    assert [flag for flag in flags if "rate" in flag] == ["--trace-config=rate=0", "--trace-config=rate=9"]
    assert all("PREFERENCE_OTLP_ENDPOINT" in service["environment"] for service in servers.values())


def test_one_changed_byte_is_refused_before_the_server_starts(enter: Any, repository: Path) -> None:
    (repository / "combine" / "config.pbtxt").write_text('name: "combinf"\n')
    result = enter()
    assert result.returncode == 2
    assert result.stdout == ""
    assert "combine/config.pbtxt` was changed" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_that_is_no_repository_is_refused(enter: Any, repository: Path) -> None:
    (repository / "manifest.json").unlink()
    result = enter()
    assert result.returncode == 2
    assert "has no manifest.json" in result.stderr
    assert "hint:" in result.stderr


@pytest.fixture
def told_to_stop(tmp_path: Path, repository: Path) -> Callable[..., tuple[int, str]]:
    """Runs the entrypoint with this `tritonserver`, or this verification, and stops it once that says so.

    The result: the exit code and what was said.
    """

    def run(tritonserver: str, python3: str = "exit 0") -> tuple[int, str]:
        commands = tmp_path / "bin"
        commands.mkdir()
        for name, script in (("python3", python3), ("tritonserver", tritonserver)):
            (commands / name).write_text(f"#!/bin/sh\n{script}\n")
            (commands / name).chmod(0o755)
        entrypoint = tmp_path / "entrypoint.py"
        entrypoint.write_text((DOCKER / "entrypoint.py").read_text().replace("EXIT_TIMEOUT_S + 4", "1"))
        environment = {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
        environment["PREFERENCE_ANSWERED"] = str(tmp_path / "answered")
        line = [sys.executable, str(entrypoint)]
        with subprocess.Popen(
            line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            assert process.stdout.readline() == "running\n"
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=20)
        return process.returncode, said

    return run


def test_a_server_that_hangs_while_it_stops_is_killed_and_the_log_says_so(told_to_stop: Any) -> None:
    code, said = told_to_stop("trap '' TERM\necho running\nexec sleep 600 >/dev/null 2>&1")
    assert code == 1
    assert said == "tritonserver did not end within 1 s: killed\n"


@pytest.mark.parametrize("code", [0, 3])
def test_a_server_that_stops_by_itself_keeps_its_exit_code(told_to_stop: Any, code: int) -> None:
    stopping = f"trap 'exit {code}' TERM\necho running\nwhile :; do sleep 0.05; done"
    assert told_to_stop(stopping) == (code, "")


def test_a_crash_while_stopping_has_the_code_of_a_shell(told_to_stop: Any) -> None:
    code, _ = told_to_stop("trap 'kill -ABRT $$' TERM\necho running\nwhile :; do sleep 0.05; done")
    assert code == 128 + signal.SIGABRT


def test_a_stop_while_the_repository_is_verified_is_obeyed(told_to_stop: Any) -> None:
    code, _ = told_to_stop("echo never", python3="echo running\nexec sleep 600 >/dev/null 2>&1")
    assert code == 128 + signal.SIGTERM


def test_the_image_holds_every_program_that_it_runs() -> None:
    copied = {
        Path(name).name for line in re.findall(r"^COPY (?!--from).*", DOCKERFILE, re.MULTILINE) for name in line.split()
    }
    assert set(re.findall(r'"/opt/preference/([^"]+)"', DOCKERFILE)) == {"entrypoint.py", "ready.py"} & copied


def test_docker_waits_longer_than_the_entrypoint(services: dict[str, Any]) -> None:
    killed_after = runpy.run_path(str(DOCKER / "entrypoint.py"))["KILL_AFTER_S"]
    for name in ("triton", "triton-two-gpus", "triton-cpu"):
        assert int(services[name]["stop_grace_period"].removesuffix("s")) >= killed_after + 5


class Server(grpc.GenericRpcHandler):
    """In the place of Triton: what it was asked, and what it answers; without an answer it refuses."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.answers = {"ModelInfer": b"an answer", "Check": b"\x08\x01"}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            _, service, method = handler_call_details.method.split("/")
            infer = service_pb2.ModelInferRequest
            self.asked.append(infer.FromString(request) if method == "ModelInfer" else service)
            if method not in self.answers:
                context.abort(grpc.StatusCode.UNAVAILABLE, "not ready")
            return self.answers[method]

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def server() -> Iterator[Server]:
    """Listens at its `port`."""
    handler, serving = Server(), grpc.server(ThreadPoolExecutor(2))
    serving.add_generic_rpc_handlers((handler,))
    handler.port = serving.add_insecure_port("127.0.0.1:0")  # type: ignore[attr-defined]
    serving.start()
    yield handler
    serving.stop(None).wait()


@pytest.fixture
def check_health(server: Any, tmp_path: Path) -> Callable[[], str]:
    """Runs the health check; what it says against the server, nothing if that is healthy."""
    script = (DOCKER / "ready.py").read_text()
    assert "PORT = 8001\n" in script
    (tmp_path / "ready.py").write_text(script.replace("PORT = 8001\n", f"PORT = {server.port}\n"))

    def run() -> str:
        environment = {"PREFERENCE_ANSWERED": str(tmp_path / "answered"), **os.environ}
        line = [sys.executable, str(tmp_path / "ready.py")]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode == 0) is (done.stderr == "")
        return done.stderr

    return run


def test_healthy_is_a_server_that_answered_one_battle_and_is_ready(server: Any, check_health: Any) -> None:
    assert [check_health() for _ in range(3)] == ["", "", ""]
    battle, *later = server.asked
    assert later == ["grpc.health.v1.Health"] * 2
    assert battle.model_name == tensors.ENSEMBLE
    assert [(each.name, each.datatype, list(each.shape)) for each in battle.inputs] == [
        (name, "BYTES", [1, 1]) for name in tensors.FIELDS
    ]
    assert all(int.from_bytes(text[:4], "little") == len(text) - 4 > 0 for text in battle.raw_input_contents)
    assert len(battle.raw_input_contents) == len(battle.inputs)


def test_a_server_that_refuses_its_battle_is_not_healthy_until_it_answers_one(server: Any, check_health: Any) -> None:
    answer = server.answers.pop("ModelInfer")
    assert check_health() == "not ready: inference.GRPCInferenceService/ModelInfer was refused\n"
    server.answers["ModelInfer"] = answer
    assert check_health() == ""


@pytest.mark.parametrize("answer", [b"\x08\x02", b"", None])
def test_a_server_that_answered_and_is_no_longer_ready_is_not_healthy(
    server: Any, check_health: Any, answer: bytes | None
) -> None:
    assert check_health() == ""
    server.answers = {} if answer is None else {"Check": answer}
    assert "not ready: " in check_health()


def test_where_nothing_can_be_kept_each_check_asks_for_a_battle(
    server: Any, check_health: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFERENCE_ANSWERED", "/proc/answered")
    assert [check_health(), check_health()] == ["", ""]
    assert [each.model_name for each in server.asked] == [tensors.ENSEMBLE] * 2


def test_a_server_that_starts_is_asked_for_a_battle_again(enter: Any, tmp_path: Path) -> None:
    (tmp_path / "answered").touch()
    assert enter().returncode == 0
    assert not (tmp_path / "answered").exists()


@pytest.fixture
def fetch(tmp_path: Path, repository: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs the init container's program on an archive of `repository`, which `change` may alter first."""
    target = tmp_path / "fetched"
    target.mkdir()

    def run(change: Callable[[Path], None] = lambda archive: None, sha256: str = "") -> Any:
        archive = tmp_path / "repository.tar.gz"
        with tarfile.open(archive, "w:gz") as file:
            file.add(repository, ".")
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        change(archive)
        environment = {**os.environ, "REPOSITORY_URL": archive.as_uri(), "REPOSITORY_SHA256": sha256 or digest}
        line = [sys.executable, str(DOCKER / "fetch.py"), str(target)]
        return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)

    return run


def test_a_fetched_repository_is_the_verified_one(fetch: Any, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "fetched" / "left by a killed try").mkdir()
    result = fetch()
    assert (result.returncode, result.stdout) == (0, "")
    fetched = {path.name: path.read_bytes() for path in (tmp_path / "fetched").rglob("*") if path.is_file()}
    assert fetched == {path.name: path.read_bytes() for path in repository.rglob("*") if path.is_file()}


def _cut_in_half(archive: Path) -> None:
    data = archive.read_bytes()
    archive.write_bytes(data[: len(data) // 2])


def _add_a_file_outside(archive: Path) -> None:
    with tarfile.open(archive, "w:gz") as file:
        file.addfile(tarfile.TarInfo("../outside"))


@pytest.mark.parametrize(
    ("change", "sha256", "exit_code", "said"),
    [
        (lambda archive: None, "0" * 64, 2, "REPOSITORY_SHA256 is 0000"),
        (lambda archive: archive.unlink(), "", 1, "could not be fetched"),
        (_cut_in_half, "", 1, "could not be fetched"),
        (_add_a_file_outside, "", 1, "could not be fetched"),
    ],
)
def test_what_is_not_the_archive_asked_for_leaves_nothing(
    fetch: Any, tmp_path: Path, change: Any, sha256: str, exit_code: int, said: str
) -> None:
    result = fetch(change, sha256)
    assert result.returncode == exit_code
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert list((tmp_path / "fetched").iterdir()) == []
    assert not (tmp_path / "outside").exists()


def test_an_archive_whose_manifest_does_not_fit_is_refused(fetch: Any, repository: Path) -> None:
    (repository / "combine" / "config.pbtxt").write_text('name: "combinf"\n')
    result = fetch()
    assert result.returncode == 2
    assert "was changed" in result.stderr
