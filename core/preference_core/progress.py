"""What long work calls to say how far it is. Who draws the bars is for each command to decide."""

from collections.abc import Callable

#: Called with the number of bytes written since the last call.
BytesDone = Callable[[int], None]
#: Called with the name of a step, how much of it is done, and how much there is.
StepDone = Callable[[str, int, int], None]


def no_report(name: str, done: int, total: int) -> None:
    """The `StepDone` of callers that show nothing."""
