"""The script `python -I -S run_with_parent.py PARENT LIBRARY_PATH COMMAND ...`: becomes COMMAND, ends with PARENT.

A script and not code between fork and exec, because that is unsafe in a process with threads. PARENT is a process id;
LIBRARY_PATH is set only now, so that it concerns COMMAND and not this interpreter.
"""

import ctypes
import os
import signal
import sys

SET_PARENT_DEATH_SIGNAL = 1


def become(parent: int, library_path: str, command: list[str]) -> None:
    """Asks the kernel for SIGTERM on the death of `parent`, then replaces this process by `command`."""
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)
    os.environ["LD_LIBRARY_PATH"] = library_path
    os.execv(command[0], command)


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
