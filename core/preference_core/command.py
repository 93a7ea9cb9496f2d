"""How every command ends: when it fails, two lines on stderr and the exit code of the error; and by which signals.

It knows no command-line library: a command is a function that takes its arguments.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType

from preference_core.errors import PreferenceError, describe, escape_control_characters

FLAG = "--traceback"
VARIABLE = "PREFERENCE_TRACEBACK"
VERSION = "--version"
TRACEBACK_HELP = (
    f"With {FLAG}, or {VARIABLE}=1 in the environment, an error shows where it arose and what caused it. "
    f"{VERSION} prints the version."
)
#: What tells a command to stop: Ctrl-C, whatever ends services and jobs, and a terminal that is closed.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stopped_by(
    handler: Callable[[int, FrameType | None], object], signals: tuple[int, ...] = STOP_SIGNALS
) -> Iterator[None]:
    """Inside, `handler` gets these signals, but for those that this process was started to ignore, as by `nohup`."""
    heeded = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def run_command(command: Callable[[list[str]], object]) -> None:
    """Runs `command` with the arguments of this process; a `PreferenceError` is described and ends the process.

    `--traceback` may stand anywhere before `--`, and is for this function only, as is `--version` alone. The
    distributions have one version.
    """
    if sys.argv[1:] == [VERSION]:
        sys.stdout.write(f"{Path(sys.argv[0]).name} {version('preference-core')}\n")
        return
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    own = sys.argv[1:end]
    try:
        command([argument for argument in own if argument != FLAG] + sys.argv[end:])
    except PreferenceError as error:
        if FLAG in own or os.environ.get(VARIABLE, "0") not in ("", "0"):
            sys.stderr.write(escape_control_characters("".join(traceback.format_exception(error))))
        sys.stderr.write(describe(error) + "\n")
        sys.exit(error.exit_code)
