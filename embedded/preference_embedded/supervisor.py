"""Watches a running server, restarts it when a part of it dies, and tells people what it says and does not serve yet.

The bundled release notices neither that the process of a model died nor that it no longer answers: its health stays
good, and requests fail. It knows nothing of commands or signals.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from preference_core.errors import ServerError
from preference_embedded.server_log import LogLevel, entry, worth_showing

INTERVAL_S = 0.2
#: Between looks at whether another version was written meanwhile.
LOOK_INTERVAL_S = 2.0
#: A server that breaks down more often than this within the time is not restarted again.
MAX_BREAKDOWNS = 3
BREAKDOWN_PERIOD_S = 60.0

Say = Callable[[str], None]


class Supervised(Protocol):
    """What can be watched: `lost` says what broke, `restart` repairs it.

    `release` is what is served, `written_since` what stands in its place on the disk by now.
    """

    log_file: Path

    @property
    def release(self) -> str: ...
    def written_since(self) -> str: ...
    def lost(self) -> str | None: ...
    def restart(self) -> None: ...


def supervise(server: Supervised, until: Callable[[], bool], say: Say, log_level: LogLevel = "warning") -> None:
    """Keeps `server` running until `until` is true; `say` gets what happens and the log lines worth showing.

    Raises `ServerError` when the server breaks down too often, or does not start again.
    """
    log = LogReader(server.log_file, log_level)
    breakdowns: list[float] = []
    told = ""
    next_look_s = time.monotonic()
    while not until():
        for message in log.news():
            say(message)
        reason = server.lost()
        if reason is not None:
            breakdowns = [moment for moment in breakdowns if time.monotonic() - moment < BREAKDOWN_PERIOD_S]
            breakdowns.append(time.monotonic())
            if len(breakdowns) > MAX_BREAKDOWNS:
                raise ServerError(
                    f"The server broke down {len(breakdowns)} times within {BREAKDOWN_PERIOD_S:g} s: {reason}",
                    hint=f"All it said is in `{server.log_file}`.",
                )
            say(f"{reason}; restarting the server")
            server.restart()
            say(f"the server is ready again: {server.release}" if server.release else "the server is ready again")
        if time.monotonic() >= next_look_s:
            next_look_s = time.monotonic() + LOOK_INTERVAL_S
            written = server.written_since()
            if written and written != told:
                say(f"{written} was written; {server.release} is served until `preference-serve` is started again")
            told = written
        time.sleep(INTERVAL_S)


class LogReader:
    """What was added to a log file since the last look, as far as it is worth showing at `level`."""

    def __init__(self, path: Path, level: LogLevel) -> None:
        self._path = path
        self._level = level
        self._position = path.stat().st_size
        self._rest = b""

    def news(self) -> list[str]:
        """New messages, whole lines only."""
        with self._path.open("rb") as log:
            log.seek(self._position)
            content = log.read()
        self._position += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        texts = (line.decode(errors="replace") for line in lines)
        return [entry(text)[1] for text in texts if worth_showing(text, self._level)]
