#!/usr/bin/env python3
"""Verifies the repository at /models, then runs tritonserver until it ends. Further arguments are passed on to it.

Told to stop while requests are under way, tritonserver can hang beyond its own timeout. So it is killed before
Docker or Kubernetes would kill this whole container, and the log says so.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

EXIT_TIMEOUT_S = 30
#: Between Triton's own timeout and the kill.
KILL_AFTER_S = EXIT_TIMEOUT_S + 4
KILLED = 1


def main(arguments: list[str]) -> int:
    """The exit code of the verification if it refuses, else the server's."""
    # The first process of a container ignores what it does not handle, and verifying takes minutes.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    repository = os.environ.get("PREFERENCE_MODELS", "/models")
    verify = ["python3", "-m", "preference_core.artefacts.manifest", repository, "repository"]
    if refused := subprocess.run(verify, check=False).returncode:
        return refused
    # The health check asks a server that starts for a battle; /tmp of a pod outlives the server before it.
    if (answered := Path(os.environ["PREFERENCE_ANSWERED"])).exists():
        answered.unlink()
    return serve(
        [
            "tritonserver",
            f"--model-repository={repository}",
            "--model-control-mode=none",
            "--disable-auto-complete-config",
            "--exit-on-error=true",
            "--strict-readiness=true",
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            "--allow-metrics=true",
            "--metrics-config=summary_latencies=true",
            "--log-format=ISO8601",
            *tracing(os.environ.get("PREFERENCE_OTLP_ENDPOINT", "")),
            *arguments,
        ]
    )


def tracing(endpoint: str) -> list[str]:
    """The flags that send spans of the battles with a trace context to `endpoint`, an OTLP URL; none without one."""
    settings = [
        "mode=opentelemetry",
        f"opentelemetry,url={endpoint}",
        "opentelemetry,resource=service.name=preference-ensemble",
        "level=TIMESTAMPS",
        # Only what a caller asks for; `--trace-config=rate=100` among the arguments traces every hundredth, too.
        "rate=0",
    ]
    return [f"--trace-config={setting}" for setting in settings] if endpoint else []


def serve(command: list[str]) -> int:
    """Runs `command`; SIGTERM and SIGINT reach it, and from then on it has KILL_AFTER_S seconds."""
    stops = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    server = subprocess.Popen(command, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, stops))
    killed = False

    def stop(number: int, frame: FrameType | None) -> None:
        server.send_signal(number)
        signal.alarm(KILL_AFTER_S)

    def kill(number: int, frame: FrameType | None) -> None:
        nonlocal killed
        killed = True
        os.write(sys.stderr.fileno(), f"tritonserver did not end within {KILL_AFTER_S} s: killed\n".encode())
        server.kill()

    for number in stops:
        signal.signal(number, stop)
    signal.signal(signal.SIGALRM, kill)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
    code = server.wait()
    if killed:
        return KILLED
    # As a shell reports a command that a signal ended.
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
