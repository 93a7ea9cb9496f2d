"""The command `preference-serve`: an ensemble on the embedded server, until it is stopped or while a command runs.

Reads the configuration, turns options into `launcher.Options`, and translates signals; the work is done elsewhere.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from preference_core.addresses import is_loopback
from preference_core.command import TRACEBACK_HELP, run_command, stopped_by
from preference_core.ensemble.loading import load_config
from preference_core.errors import UserError, escape_control_characters
from preference_embedded.door.tls import ServerTls
from preference_embedded.guarded import Served, door_options, server_for
from preference_embedded.launcher import PYTHON_VARIABLE, Options
from preference_embedded.server_log import LogLevel
from preference_embedded.supervisor import supervise

URL_VARIABLE = "PREFERENCE_URL"
URL_PLACEHOLDER = "{url}"
DEFAULT_PORTS = {"grpc": 8001, "http": 8000, "metrics": 8002}

EXIT_CODES = """Exit codes: 0 stopped by SIGINT, SIGTERM or SIGHUP, 1 the server or the machine failed, 2 something
given is wrong; with --run that of COMMAND, 128 + N where signal N ended it."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


def main() -> None:
    """Runs the command."""
    run_command(app)


@app.command(epilog=f"{EXIT_CODES}\n\n{TRACEBACK_HELP}")
def serve(
    config: Annotated[Path, typer.Argument(help="The ensemble's TOML file.")],
    command: Annotated[
        list[str] | None, typer.Argument(help="With --run: what to run; {url} stands for host:port.")
    ] = None,
    run: Annotated[
        bool, typer.Option("--run", help="Serve only while COMMAND runs, on free ports unless given.")
    ] = False,
    repository: Annotated[Path | None, typer.Option(help="Instead of build/NAME/repository.")] = None,
    address: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    grpc_port: Annotated[int | None, typer.Option(help="8001 unless given; 0 takes a free one.", min=0)] = None,
    http_port: Annotated[int | None, typer.Option(help="8000 unless given; 0 takes a free one.", min=0)] = None,
    metrics_port: Annotated[int | None, typer.Option(help="8002 unless given; 0 takes a free one.", min=0)] = None,
    python: Annotated[
        Path | None, typer.Option(envvar=PYTHON_VARIABLE, help="Interpreter of the environment in which models run.")
    ] = None,
    verify: Annotated[bool, typer.Option(help="Check every file against the repository's manifest first.")] = True,
    log_level: Annotated[LogLevel, typer.Option(help="How much of the server's log to show.")] = "warning",
    log_file: Annotated[Path | None, typer.Option(help="The whole log, instead of build/NAME/server.log.")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file; with it every port speaks TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its private key.")] = None,
    tls_client_authority: Annotated[
        Path | None, typer.Option(help="PEM file: only clients with a certificate from it are let in.")
    ] = None,
    json_ready: Annotated[bool, typer.Option("--json", help="Print the ready line as JSON.")] = False,
) -> None:
    """Serves the repository of an ensemble with a real tritonserver on this CPU.

    Prints one line once it is ready, restarts the server should a part of it die, and stops on Ctrl-C, on SIGTERM
    and when its terminal is closed (SIGHUP), unless `nohup` started it.
    With --run it serves only for COMMAND, which finds the server in the variable PREFERENCE_URL.
    """
    with _signals() as arrived:
        if bool(command) != run:
            raise UserError("`--run` and COMMAND belong together", hint="preference-serve CONFIG --run -- COMMAND ...")
        if command and shutil.which(command[0]) is None:
            raise UserError(f"`{command[0]}` is not a command that can be run")
        settings = load_config(config)
        tls = _tls(tls_certificate, tls_key, tls_client_authority)
        wanted = {"grpc": grpc_port, "http": http_port, "metrics": metrics_port}
        ports = {name: (0 if run else DEFAULT_PORTS[name]) if port is None else port for name, port in wanted.items()}
        options = Options(
            repository=repository or settings.folders.repository,
            address=address,
            grpc_port=ports["grpc"],
            http_port=ports["http"],
            metrics_port=ports["metrics"],
            python=python or Path(sys.executable),
            verify=verify,
            verbose=log_level == "verbose",
            log_file=log_file or settings.folders.server_log,
            say=_say,
        )
        if not is_loopback(address):
            _say(f"warning: `{address}` is open to the network; this Triton (24.10) lacks two years of security fixes")
            if tls is None or tls.client_authority is None:
                _say("hint: Let in only clients that you know, with `--tls-client-authority`.")
        server, guarded = server_for(options, door_options(settings, tls))
        if not guarded:
            if tls is not None:
                raise UserError("TLS needs an ensemble in the repository: without one there is no front door")
            _say("warning: the repository holds no ensemble; clients reach its models unchecked")
        code = _serve(server, command or [], log_level, json_ready, arrived)
    raise typer.Exit(code)


def _serve(
    server: Served, command: Sequence[str], log_level: LogLevel, json_ready: bool, arrived: Sequence[int]
) -> int:
    """Serves until a signal has `arrived`, or until `command` has ended; returns the exit code."""
    began = time.monotonic()
    try:
        with suppress(_Stopped):
            with Console(stderr=True).status("Starting") as status:
                server.start(report=status.update)
            ready = _ready_line(server, time.monotonic() - began, json_ready)
            if command:
                _say(ready)
                return _run(server, command, log_level, arrived)
            sys.stdout.write(ready + "\n")
            sys.stdout.flush()
            supervise(server, lambda: bool(arrived), _say, log_level)
        _say("stopping")
        return 128 + arrived[0] if command else 0
    finally:
        server.stop()


def _tls(certificate: Path | None, key: Path | None, client_authority: Path | None) -> ServerTls | None:
    if certificate is None and key is None and client_authority is None:
        return None
    if certificate is None or key is None:
        raise UserError("TLS needs both a certificate and its key", hint="--tls-certificate FILE --tls-key FILE")
    tls = ServerTls(certificate, key, client_authority)
    tls.context()
    return tls


def _run(server: Served, command: Sequence[str], log_level: LogLevel, arrived: Sequence[int]) -> int:
    arguments = [argument.replace(URL_PLACEHOLDER, server.urls["grpc"]) for argument in command]
    process = subprocess.Popen(arguments, env={**os.environ, URL_VARIABLE: server.urls["grpc"]})
    try:
        with suppress(_Stopped):
            supervise(server, lambda: process.poll() is not None or bool(arrived), _say, log_level)
        # A terminal sends SIGINT to the command as well.
        if process.poll() is None and (arrived[0] != signal.SIGINT or not sys.stdin.isatty()):
            process.send_signal(arrived[0])
    except BaseException:
        process.terminate()
        raise
    finally:
        status = process.wait()
    return status if status >= 0 else 128 - status


def _ready_line(server: Served, seconds: float, as_json: bool) -> str:
    addresses = server.urls
    models = [model.name for model in server.models]
    if as_json:
        said = {"release": server.release, "models": models, "seconds": round(seconds, 3), "log": str(server.log_file)}
        return json.dumps({**addresses, **said})
    listed = ", ".join(f"{name} {url}" for name, url in addresses.items())
    return "; ".join(
        filter(None, [f"ready after {seconds:.1f} s: {listed}", server.release, f"models: {', '.join(models)}"])
    )


def _say(text: str) -> None:
    with suppress(OSError):  # A terminal that was closed.
        sys.stderr.write(escape_control_characters(text) + "\n")
        sys.stderr.flush()


class _Stopped(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived."""


@contextmanager
def _signals() -> Iterator[Sequence[int]]:
    """Makes signals to stop unwind as errors do.

    Yields the signals that have arrived, for whoever waits: an exception raised in a destructor is lost. A second
    SIGTERM, as `make` sends one beside the group's, does not cut the stopping short; a second Ctrl-C does.
    """
    arrived: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        if len(arrived) == 1 or number == signal.SIGINT:
            raise _Stopped

    with stopped_by(stop):
        try:
            yield arrived
        except _Stopped as error:
            raise typer.Exit(0) from error
