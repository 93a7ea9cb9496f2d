"""Reads tritonserver's log: what people should see of it, and why the server failed.

Works on lines of text in Triton's default format; it knows nothing of processes or files.
"""

import re
from collections.abc import Iterable
from typing import Literal

LogLevel = Literal["error", "warning", "info", "verbose"]

#: What a CUDA build of Triton complains of on a machine without a GPU. Nothing of it matters on a CPU.
HARMLESS = (
    "CudaDriverHelper has not been initialized",
    "CUDA driver version is insufficient for CUDA runtime version",
    "no CUDA-capable device is detected",
    "CUDA memory pool disabled",
    "Pinned memory pool disabled",
    "failed to allocate pinned system memory",
    "Unable to allocate pinned system memory",
    "Failed to initialize NVML",
    "DCGM unable to start",
)

_ENTRY = re.compile(r'([IWEFV])\d{4} [\d:.]+ \d+ \S+:\d+\] (?:"(.*)"|(.*))$')
_LEVELS: dict[str, LogLevel] = {"E": "error", "F": "error", "W": "warning", "I": "info", "V": "verbose"}
_ORDER: tuple[LogLevel, ...] = ("error", "warning", "info", "verbose")
_TABLE = ("+", "|")

_MODEL_FAILED = re.compile(r"failed to load '([^']+)' version \d+: (.*)", re.DOTALL)
_MODEL_UNREADABLE = re.compile(r"Poll failed for model directory '([^']+)': (.*)", re.DOTALL)
_ENSEMBLE_FAILED = re.compile(r"Invalid argument: ensemble '([^']+)' (?!.*has no loaded version)(.*)", re.DOTALL)
_PROTOBUF = re.compile(r"Error parsing text-format inference\.ModelConfig: (.*)")
_SERVER_FAILED = re.compile(
    r"(?:error: creating server:|failed to start \w+ service:|tritonserver:|(?=terminate called)) ?(.*)"
)
_STATUS = re.compile(r"^(?:Internal|Invalid argument|Not found|Unavailable|Unknown|Unsupported)(?: - |: )")
_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Failure): ")
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r"}


def entry(line: str) -> tuple[LogLevel, str]:
    """Level and message of one line. What is not a log entry, a model's own output for instance, is information."""
    found = _ENTRY.match(line)
    if found is None:
        return "info", line
    quoted, plain = found[2], found[3]
    message = plain if quoted is None else _ESCAPE.sub(lambda escape: _ESCAPED.get(escape[1], escape[1]), quoted)
    return _LEVELS[found[1]], message


def worth_showing(line: str, level: LogLevel) -> bool:
    """Whether a person who asked for `level` should see the line: except what is harmless on a CPU, and tables."""
    if not line.strip() or line.startswith(_TABLE) or any(text in line for text in HARMLESS):
        return False
    severity, message = entry(line)
    return bool(message.strip()) and _ORDER.index(severity) <= _ORDER.index(level)


def cause_of_failure(lines: Iterable[str]) -> str | None:
    """Why the server did not start: the first model that failed and its message, else Triton's last word.

    An ensemble that failed only because a step of it did is not a cause. None when the log has no answer.
    """
    parse_error = last_word = None
    for line in lines:
        message = entry(line)[1]
        if found := _PROTOBUF.search(line):
            parse_error = found[1]
        elif found := _MODEL_UNREADABLE.search(message):
            return f"Model `{found[1]}`: config.pbtxt: {parse_error or _first_line(found[2])}"
        elif found := _MODEL_FAILED.search(message) or _ENSEMBLE_FAILED.search(message):
            return f"Model `{found[1]}`: {_first_line(found[2])}"
        elif found := _SERVER_FAILED.search(message):
            last_word = _first_line(found[1])
    return last_word


def _first_line(message: str) -> str:
    """The message without Triton's status, the name of the Python exception, and the traceback."""
    text = _EXCEPTION.sub("", _STATUS.sub("", message.strip()))
    return text.split("\n\nAt:", 1)[0].strip().split("\n", 1)[0]
