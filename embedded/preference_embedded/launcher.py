"""Starts the bundled tritonserver on a model repository, waits until it serves, and ends it without a trace.

The server is a child process that also ends when this process is killed. It knows nothing of requests: it
asks the server for its health over HTTP and nothing else.
"""

import http.client
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from preference_core.artefacts import manifest
from preference_core.artefacts.contents import seal_of
from preference_core.errors import ServerError
from preference_core.triton.answers import DEAD_PROCESS
from preference_embedded import machine, ports, processes, server_log
from preference_embedded.machine import MIB, Machine
from preference_embedded.repository import ServedModel, models_of, release_of

POLL_INTERVAL_S = 0.02
#: The bundled release sometimes crashes while it loads models, and serves at the next try.
MAX_START_CRASHES = 2
HEALTH_TIMEOUT_S = 5.0
#: The kernel takes 107 bytes for the path of a socket.
LONGEST_FOLDER = 60
#: Triton needs different ones, even where it listens on none.
UNUSED_PORTS = {"grpc": 1, "http": 2, "metrics": 3}
PYTHON_VARIABLE = "PREFERENCE_SERVER_PYTHON"
#: Clients do not need these and must not reach them: shared memory reads and writes this machine's memory.
CLOSED_INTERFACES = "shared-memory,trace,logging"


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


@dataclass(frozen=True)
class Options:
    """How to serve a repository. A port of 0 takes a free one; `private` takes none, but sockets in a folder that only
    this user can enter.

    `python` is the interpreter of the environment in which models run, by default what the variable
    PREFERENCE_SERVER_PYTHON names, or else this one; links are kept, for they make it a virtual environment. `verify`
    checks every file against the repository's manifest first; only a repository under development goes without.
    `log_file` gets everything the server says; without one it goes to a temporary file that is removed unless something
    failed. `extra_arguments` are passed to tritonserver. `say` gets one line for each start that is tried again.
    """

    repository: Path
    private: bool = False
    address: str = "127.0.0.1"
    grpc_port: int = 0
    http_port: int = 0
    metrics_port: int = 0
    python: Path = field(default_factory=lambda: Path(os.environ.get(PYTHON_VARIABLE) or sys.executable))
    verify: bool = True
    verbose: bool = False
    log_file: Path | None = None
    start_timeout_s: float = 300.0
    stop_timeout_s: float = 30.0
    shared_memory: Path = Path("/dev/shm")
    shared_memory_mib_per_instance: int = 8
    extra_arguments: tuple[str, ...] = ()
    say: Callable[[str], None] = _say


class StartCrash(ServerError):
    """The server, or the process of a model, died before all was ready."""


class TritonServer:
    """A tritonserver for the time of a `with` block, or between `start` and `stop`; killed if this process is."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.models: tuple[ServedModel, ...] = ()
        self.release = ""
        self.log_file = (
            options.log_file or Path(tempfile.gettempdir()) / f"preference-server-{secrets.token_hex(4)}.log"
        )
        self._ports = {"grpc": options.grpc_port, "http": options.http_port, "metrics": options.metrics_port}
        self._prefix = f"preference-{os.getpid()}-{secrets.token_hex(4)}-"
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets: Path | None = None
        self._alive: int | None = None
        self._stubs: dict[int, str] = {}
        self._log_start = 0
        self._seal: Mapping[str, tuple[int, ...]] | None = None

    @property
    def urls(self) -> Mapping[str, str]:
        """`host:port` by service: `grpc`, `http`, `metrics`."""
        return {service: self._url(service) for service in self._ports}

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self, report: Callable[[str], None] = lambda step: None) -> None:
        """Checks everything that can be checked, starts the server and returns once all models are ready.

        Raises `ArtefactError` for a repository that is missing or was changed, `ServerError` when this machine cannot
        run the server, a port is busy, a model does not load, or `start_timeout_s` passes. `report` is told each step.
        A server that crashes meanwhile is started again, MAX_START_CRASHES times at most.
        """
        options = self.options
        self.models, self.release = models_of(options.repository), release_of(options.repository)
        facts = machine.gather(options.python, options.shared_memory)
        instances = sum(model.instances for model in self.models)
        machine.check(facts, instances * options.shared_memory_mib_per_instance * MIB)
        temporary = tempfile.gettempdir()
        if not machine.is_plain(temporary):
            raise ServerError(
                f"Triton cannot be started in `{temporary}`: the path holds characters that a shell reads otherwise",
                hint="Set TMPDIR to a folder with a plain path, such as `/tmp`.",
            )
        if options.verify:
            report("Verifying the repository")
            self._verify()
        if not options.private:
            self._ports = ports.resolve(options.address, self._ports)
        elif len(os.fsencode(temporary)) > LONGEST_FOLDER:
            raise ServerError(
                f"Sockets cannot be made in `{temporary}`: the path is longer than {LONGEST_FOLDER} bytes",
                hint="Set TMPDIR to a shorter one.",
            )
        report("Loading models")
        for crashes_left in reversed(range(MAX_START_CRASHES + 1)):
            try:
                self._start_once(facts)
                break
            except StartCrash as error:
                if not crashes_left:
                    raise
                options.say(f"warning: {error}; starting it again")
        self._stubs = processes.stubs_of(self.pid)

    def stop(self, timeout_s: float | None = None) -> None:
        """Lets accepted requests finish, ends the server and removes what it left behind. Does nothing a second time.

        After `timeout_s` (default: the option `stop_timeout_s`) the server and its models are killed.
        """
        if self._process is None:
            return
        healthy = self.lost() is None
        self._end(self.options.stop_timeout_s if timeout_s is None else timeout_s)
        if healthy and self.options.log_file is None:
            self.log_file.unlink(missing_ok=True)

    def restart(self) -> None:
        """Ends what is left of a broken server without waiting for it, and starts it again on the same ports.

        The repository is verified once more only if something in it was touched: large ones take minutes.
        """
        self.stop(timeout_s=0.0)
        self.start()

    def written_since(self) -> str:
        """What the repository holds now, if it is not what is served; "" otherwise."""
        found = release_of(self.options.repository)
        return found if found != self.release else ""

    def lost(self) -> str | None:
        """What died since the start: the server, or the process of a model, which this release does not notice."""
        assert self._process is not None, "the server is not running"
        status = self._process.poll()
        if status is not None:
            return f"tritonserver ended with status {status}"
        for pid, instance in self._stubs.items():
            if processes.stub_instance(pid, self.pid) is None:
                return f"process {pid} of model instance `{instance}` died"
        return None

    def _verify(self) -> None:
        seal = seal_of(self.options.repository)
        if seal != self._seal:
            manifest.verify(self.options.repository, kind=manifest.REPOSITORY)
            self._seal = seal

    def _start_once(self, facts: Machine) -> None:
        # Once all models are loaded nothing reads the backends' files again; gone by then, they cannot be left behind.
        with tempfile.TemporaryDirectory(prefix=self._prefix) as private:
            write_backends(Path(private) / "backends", facts)
            write_environment(Path(private) / "environment", facts)
            self._launch(facts, Path(private))
            try:
                self._wait_until_ready()
            except BaseException:
                self._end(timeout_s=self.options.stop_timeout_s)
                raise

    def _url(self, service: str) -> str:
        if self.options.private:
            # Triton appends the port to gRPC's address, whatever that is.
            return f"{self._address(service)}:{UNUSED_PORTS['grpc']}" if service == "grpc" else self._address(service)
        return ports.url(self.options.address, self._ports[service])

    def _address(self, service: str) -> str:
        return self.options.address if self._sockets is None else f"unix:{self._sockets / service}"

    def _launch(self, facts: Machine, private: Path) -> None:
        assert facts.bundle is not None
        assert facts.libpython is not None
        library_path = [str(facts.bundle.libraries), str(facts.libpython.parent), os.environ.get("LD_LIBRARY_PATH", "")]
        if self.options.private:
            self._sockets = Path(tempfile.mkdtemp(prefix=self._prefix))
        ended, self._alive = os.pipe()
        runner = [sys.executable, "-I", "-S", str(Path(__file__).with_name("run_with_parent.py")), str(ended)]
        traces = [str(folder / self._prefix) for folder in (self.options.shared_memory, Path(tempfile.gettempdir()))]
        repository = self.options.repository.resolve()
        if not machine.is_plain(repository):
            (private / "repository").symlink_to(repository)
            repository = private / "repository"
        server = [str(facts.bundle.binary), *self._arguments(repository, private / "backends")]
        environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(private / "environment/bin"), os.environ.get("PATH", os.defpath)]),
            "CUDA_VISIBLE_DEVICES": "",  # The CPU runtime uses the CPU even where there is a GPU.
        }
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [*runner, ":".join(filter(None, library_path)), ":".join(traces), *server],
                cwd=private,  # The models' Python imports from the working directory first.
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=[ended],
            )
        os.close(ended)

    def _arguments(self, repository: Path, backends: Path) -> list[str]:
        options, key = self.options, secrets.token_hex(16)
        arguments = {
            "model-repository": repository,
            "backend-directory": backends,
            "exit-on-error": "true",
            "strict-readiness": "true",
            "exit-timeout-secs": max(1, int(options.stop_timeout_s)),
            "grpc-restricted-protocol": f"{CLOSED_INTERFACES}:closed={key}",
            "http-restricted-api": f"{CLOSED_INTERFACES}:closed={key}",
            "metrics-config": "summary_latencies=true",
            "allow-gpu-metrics": "false",
            "pinned-memory-pool-byte-size": 0,
            "backend-config": f"python,shm-region-prefix-name={self._prefix}",
            "log-verbose": int(options.verbose),
        }
        for service, port in (UNUSED_PORTS if options.private else self._ports).items():
            arguments |= {f"{service}-address": self._address(service), f"{service}-port": port}
        return [
            "--disable-auto-complete-config",
            *(f"--{name}={value}" for name, value in arguments.items()),
            *options.extra_arguments,
        ]

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self.options.start_timeout_s
        while not self._ready():
            if self._process.poll() is not None:
                raise self._failure("The server did not start")
            if time.monotonic() > deadline:
                raise self._failure(f"The server was not ready after {self.options.start_timeout_s:g} s")
            time.sleep(POLL_INTERVAL_S)

    def _ready(self) -> bool:
        connection = _connection(self._url("http"))
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _failure(self, what: str) -> ServerError:
        with self.log_file.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        cause = server_log.cause_of_failure(lines)
        crashed = (self._process is not None and (self._process.poll() or 0) < 0) or DEAD_PROCESS in (cause or "")
        kind = StartCrash if crashed else ServerError
        return kind(f"{what}: {cause}" if cause else what, hint=f"All it said is in `{self.log_file}`.")

    def _end(self, timeout_s: float) -> None:
        assert self._process is not None
        try:
            processes.end(self._process, timeout_s)
        finally:
            processes.remove_shared_memory(self.options.shared_memory, self._prefix)
            if self._sockets is not None:
                shutil.rmtree(self._sockets)
            if self._alive is not None:
                with suppress(BrokenPipeError):
                    os.write(self._alive, b"ended")
                os.close(self._alive)
            self._process = self._alive = self._sockets = None


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over the Unix socket at the path `host`."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.host)


def _connection(url: str) -> http.client.HTTPConnection:
    if url.startswith("unix:"):
        return _UnixConnection(url.removeprefix("unix:"), timeout=HEALTH_TIMEOUT_S)
    host, _, port = url.rpartition(":")
    return http.client.HTTPConnection(host.strip("[]"), int(port), timeout=HEALTH_TIMEOUT_S)


def write_backends(folder: Path, facts: Machine) -> None:
    """Fills `folder` with the two backends of the server: `python` from the bundle, `onnxruntime` from this package.

    Copies, because Triton refuses backend files that are links out of the folder.
    """
    assert facts.bundle is not None
    ignore = shutil.ignore_patterns("__pycache__")
    folder.mkdir()
    shutil.copytree(facts.bundle.python_backend, folder / "python", ignore=ignore)
    shutil.copy2(facts.bundle.stub(facts.python.version), folder / "python")
    shutil.copytree(Path(__file__).with_name("backends"), folder, ignore=ignore, dirs_exist_ok=True)


def write_environment(folder: Path, facts: Machine) -> None:
    """Makes `folder` a virtual environment with the packages of the server's, whose Python writes no byte code.

    Byte code beside a model would be run in its place, and no manifest names it. The models' interpreter is isolated:
    it ignores variables and options and sees only what is found in the environment of the first `python3` on PATH.
    """
    python = facts.python
    assert python.home is not None
    packages = folder / f"lib/python{python.version}/site-packages"
    packages.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin/python3").symlink_to(python.folder / "python3")
    (folder / "pyvenv.cfg").write_text(f"home = {python.home}\ninclude-system-site-packages = false\n")
    lines = ["import sys; sys.dont_write_bytecode = True"]
    lines += [f"import site; site.addsitedir({str(path)!r})" for path in python.packages]
    (packages / "preference.pth").write_text("\n".join(lines) + "\n")
