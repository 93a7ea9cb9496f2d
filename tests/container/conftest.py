"""The project's image and stack on a real Docker engine; `make test-container` runs these tests.

Where no engine answers, a private one is started: its sockets, data, mounts and processes are its own and end with it.
Where NVIDIA's image is not asked for by TRITON_IMAGE, a stand-in is built in its place.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
from demo_files import demo_repository

ROOT = Path(__file__).parents[2]
STANDIN = Path(__file__).with_name("standin")
CACHE = ROOT / "build" / "container"
ASKED_FOR = "PREFERENCE_CONTAINER_TESTS"
START_TIMEOUT_S = 60.0
PORTS = {"PREFERENCE_HTTP_PORT": 18000, "PREFERENCE_GRPC_PORT": 18001, "PREFERENCE_METRICS_PORT": 18002}
#: Neither the machine's firewall nor its forwarding is touched.
HARMLESS = ("--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false", "--userland-proxy=true")
#: What the server of the stand-in needs beside the project's own packages.
WHEELS = ("nvidia-pytriton", "onnxruntime", "numpy", "tokenizers", "flatbuffers", "protobuf", "packaging", "setuptools")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if ASKED_FOR not in os.environ:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="`make test-container` runs the tests that need Docker"))


def unavailable(why: str) -> NoReturn:
    """Skips; in CI, where nothing may go untested in silence, fails."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


@dataclass(frozen=True)
class Engine:
    """Runs `docker` with the variables in `environment`."""

    environment: dict[str, str]

    def __call__(self, *arguments: str | Path, timeout_s: float = 300.0, check: bool = True, **more: str) -> str:
        """What the command says on both streams; fails with it unless the command succeeds or `check` is off."""
        line = ["docker", *map(str, arguments)]
        environment = self.environment | more
        done = subprocess.run(
            line,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert not check or done.returncode == 0, f"{' '.join(line)}\n{done.stdout}"
        return done.stdout.strip()

    def inspect(self, name: str) -> dict[str, Any]:
        """What the engine knows of a container or image."""
        (facts,) = json.loads(self("inspect", name))
        return dict(facts)


def _answers(environment: dict[str, str]) -> bool:
    line = ["docker", "version"]
    return subprocess.run(line, env=environment, capture_output=True, timeout=30, check=False).returncode == 0


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The engine that answers, or a private one for the time of the tests."""
    if shutil.which("docker") is None:
        unavailable("`docker` is not installed")
    if _answers(dict(os.environ)):
        yield Engine(dict(os.environ))
        return
    missing = [name for name in ("dockerd", "unshare", "setpriv", "ip") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        unavailable(f"no Docker engine answers, and none can be started: needs root and {missing or 'nothing else'}")
    # A short path: sockets below it have at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="preference-engine-", ignore_cleanup_errors=True) as folder:
        yield from _private_engine(Path(folder))


def _private_engine(folder: Path) -> Iterator[Engine]:
    socket = f"unix://{folder}/docker.sock"
    environment = {**os.environ, "DOCKER_HOST": socket}
    bridge_was_there = Path("/sys/class/net/docker0").exists()
    line = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    line += ["dockerd", "-H", socket, "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"]
    line += ["--pidfile", f"{folder}/docker.pid", "--default-ulimit", "nofile=20000:20000", *HARMLESS]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(environment):
            if process.poll() is not None or time.monotonic() > deadline:
                unavailable("the private engine did not start:\n" + (folder / "log").read_text()[-4000:])
            time.sleep(0.2)
        yield Engine(environment)
    finally:
        # The first process of a namespace takes everything in it along: containers, shims and mounts.
        process.kill()
        process.wait()
        if not bridge_was_there:
            subprocess.run(["ip", "link", "delete", "docker0"], capture_output=True, check=False)


@pytest.fixture(scope="session")
def base(engine: Engine) -> dict[str, str]:
    """TRITON_IMAGE and TRITON_TAG: NVIDIA's image where they are given, else the stand-in of these inputs."""
    if "TRITON_IMAGE" in os.environ:
        return {name: os.environ[name] for name in ("TRITON_IMAGE", "TRITON_TAG") if name in os.environ}
    inputs = [STANDIN / "Dockerfile", ROOT / "requirements/server.txt", ROOT / "docker/requirements-build.txt"]
    inputs += sorted((ROOT / "embedded/preference_embedded").rglob("*.py"))
    tag = hashlib.sha256(b"\0".join(path.read_bytes() for path in inputs)).hexdigest()[:16]
    image = {"TRITON_IMAGE": "preference-standin", "TRITON_TAG": tag}
    if not engine("images", "--quiet", f"preference-standin:{tag}"):
        with tempfile.TemporaryDirectory() as context:
            _build_standin(engine, Path(context), f"preference-standin:{tag}")
    return image


def _build_standin(engine: Engine, context: Path, name: str) -> None:
    lines = (ROOT / "requirements/server.txt").read_text().splitlines()
    pinned = [line for line in lines if line.partition("==")[0] in WHEELS]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    pip += ["--only-binary", ":all:", "--dest", str(context / "wheels"), *pinned]
    subprocess.run(pip, check=True)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "embedded/preference_embedded", context / "preference_embedded", ignore=ignore)
    arguments = ["--build-arg", f"BASE={_debian(engine)}"] if shutil.which("debootstrap") else []
    network = ["--network", "none"]
    dockerfile = ["--file", STANDIN / "Dockerfile"]
    engine("build", *network, *arguments, *dockerfile, "--tag", name, context, DOCKER_BUILDKIT="1")


def _debian(engine: Engine) -> str:
    """A Debian with Python, made from the machine's own mirror and kept in `build/`."""
    archive = CACHE / "debian.tar"
    if not archive.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        packages = "--include=python3,python3-pip,libpython3.11,libgomp1,ca-certificates"
        with tempfile.TemporaryDirectory() as root:
            partial = archive.with_suffix(".partial")
            line = ["debootstrap", "--variant=minbase", packages, "bookworm", f"{root}/system"]
            done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            assert done.returncode == 0, done.stdout[-4000:]
            subprocess.run(["tar", "-C", f"{root}/system", "-cf", partial, "."], check=True)
            partial.replace(archive)
    engine("import", archive, "preference-debian:bookworm")
    return "preference-debian:bookworm"


@pytest.fixture(scope="session")
def repository() -> Path:
    """What `make demo` exported."""
    return demo_repository()


@dataclass(frozen=True)
class Stack:
    """The project's compose file under a project name of its own."""

    engine: Engine
    variables: dict[str, str]

    def compose(self, *arguments: str, check: bool = True, timeout_s: float = 300.0) -> str:
        """Runs `docker compose` on the project's file."""
        line = ("compose", "--file", ROOT / "docker/compose.yaml", "--profile", "cpu", *arguments)
        return self.engine(*line, check=check, timeout_s=timeout_s, **self.variables)

    @property
    def container(self) -> str:
        """Id of the server's container, running or not."""
        return self.compose("ps", "--all", "--quiet", "triton-cpu")

    @property
    def state(self) -> dict[str, Any]:
        """The container's state as the engine tells it."""
        return dict(self.engine.inspect(self.container)["State"])

    def up(self) -> float:
        """Starts the stack and waits until it is healthy; seconds that took."""
        start = time.monotonic()
        self.compose("up", "--detach", "--wait", "--wait-timeout", "120")
        return time.monotonic() - start

    def down(self) -> None:
        """Removes everything that `up` made, but the image."""
        self.compose("down", "--volumes", "--timeout", "0")

    def serving(self, repository: Path) -> "Stack":
        """The same stack on another repository."""
        return Stack(self.engine, self.variables | {"PREFERENCE_REPOSITORY": str(repository)})


@pytest.fixture(scope="session")
def stack(engine: Engine, base: dict[str, str], repository: Path) -> Iterator[Stack]:
    """The project's image, built by its compose file; nothing is started yet."""
    name = f"preference-test-{os.getpid()}"
    variables = {"COMPOSE_PROJECT_NAME": name, "PREFERENCE_IMAGE": f"{name}:test", "DOCKER_BUILDKIT": "1"}
    variables |= {"PREFERENCE_REPOSITORY": str(repository), **base}
    variables |= {port: str(number) for port, number in PORTS.items()}
    stack = Stack(engine, variables)
    stack.compose("build")
    yield stack
    stack.down()
    engine("image", "rm", f"{name}:test")


@pytest.fixture
def running(stack: Stack) -> Iterator[Stack]:
    """The healthy stack on the demo's repository."""
    stack.up()
    yield stack
    stack.down()


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Waits until a condition holds, at most `timeout_s` seconds."""

    def wait(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s"
            time.sleep(0.3)

    return wait


@pytest.fixture
def metrics() -> Callable[[], str]:
    """What Prometheus would be given."""

    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORTS['PREFERENCE_METRICS_PORT']}/metrics", timeout=5) as page:
            return str(page.read().decode())

    return read


@pytest.fixture
def answers() -> Callable[[], bool]:
    """Whether one battle is scored within 20 s."""

    def ask() -> bool:
        tensor = {"datatype": "BYTES", "shape": [1, 1], "data": ["one"]}
        inputs = [tensor | {"name": name} for name in ("prompt", "response_a", "response_b")]
        url = "http://127.0.0.1:18000/v2/models/preference_ensemble/infer"
        try:
            with urllib.request.urlopen(url, data=json.dumps({"inputs": inputs}).encode(), timeout=20) as answer:
                return bool(json.loads(answer.read())["outputs"])
        except OSError:
            return False

    return ask
