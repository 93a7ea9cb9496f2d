"""The script `python -I -S run_with_parent.py PIPE LIBRARY_PATH TRACES COMMAND ...`: becomes COMMAND, ends with PIPE.

PIPE is the number of the reading end of a pipe whose other end the parent holds. Once the parent has closed it, however
it ended, a process left behind here kills COMMAND with all that it started, and removes the files and folders that
begin with one of TRACES (joined by `:`). A script and not code between fork and exec, because that is unsafe in a
process with threads; LIBRARY_PATH is set only now, so that it concerns COMMAND and not this interpreter.
"""

import glob
import os
import shutil
import signal
import sys
from contextlib import suppress


def become(pipe: int, library_path: str, traces: str, command: list[str]) -> None:
    """Leaves the one that cleans up behind, then replaces this process by `command`."""
    server = os.getpid()
    child = os.fork()
    if not child:
        os.setsid()
        if not os.fork():
            clean_up(pipe, server, traces.split(":"))
        os._exit(0)
    os.waitpid(child, 0)
    os.close(pipe)
    os.environ["LD_LIBRARY_PATH"] = library_path
    os.execv(command[0], command)


def clean_up(pipe: int, server: int, traces: list[str]) -> None:
    """Waits for the end of `pipe`. A parent that has ended the server itself says so by writing into it."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.read(pipe, 1):
        return
    with suppress(ProcessLookupError):
        os.killpg(server, signal.SIGKILL)
    for trace in traces:
        for path in glob.glob(f"{glob.escape(trace)}*"):
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
