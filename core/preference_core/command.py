"""How every command ends when it fails: two lines on stderr and the exit code of the error; and its version.

It knows no command-line library: a command is a function that takes its arguments.
"""

import os
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from preference_core.errors import PreferenceError, describe, escape_control_characters

FLAG = "--traceback"
VARIABLE = "PREFERENCE_TRACEBACK"
VERSION = "--version"
TRACEBACK_HELP = (
    f"With {FLAG}, or {VARIABLE}=1 in the environment, an error shows where it arose and what caused it. "
    f"{VERSION} prints the version."
)


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
