"""What the door does with a request, whichever protocol it came by: checks it, lets it in or not, waits for the answer.

Everything here belongs to one event loop. A battle whose client has gone is answered anyway.
"""

import asyncio
import time
from typing import Any

import grpc  # type: ignore[import-untyped]

from preference_core.triton.answers import DEAD_PROCESS, OVERLOADED
from preference_embedded.door.admission import Admission
from preference_embedded.door.contract import Limits, Reason, Refused, checked, ensemble_named, parsed
from preference_embedded.door.upstream import Upstream


class UpstreamError(Exception):
    """The server answered with an error. `code` is gRPC's."""

    def __init__(self, code: Any, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Desk:
    """Serves while it has an `upstream`; `closed` says why it takes nothing (starting, restarting, stopping)."""

    def __init__(self, limits: Limits, admission: Admission) -> None:
        self.limits = limits
        self.admission = admission
        self.upstream: Upstream | None = None
        self.closed: str | None = "the server is starting"
        self.invalid = self.failed = 0
        self._under_way: set[asyncio.Task[bytes]] = set()

    @property
    def ready(self) -> bool:
        """Whether battles are taken."""
        return self.upstream is not None and self.closed is None

    def server(self) -> Upstream:
        """The server, if battles are taken; refuses the request otherwise."""
        if self.upstream is None or self.closed is not None:
            raise Refused(Reason.UNAVAILABLE, f"Not now: {self.closed}")
        return self.upstream

    async def infer(self, request: Any) -> bytes:
        """The server's answer to a request message, or to its bytes. Raises `Refused` or `UpstreamError`."""
        upstream = self.server()
        if not self.admission.enter():
            raise Refused(
                Reason.UNAVAILABLE,
                f"{OVERLOADED}{self.admission.under_way} battles are under way, as many as are answered within "
                f"{self.admission.goal_s:g} s (`serving.latency_goal_milliseconds`)",
            )
        try:
            message = parsed(request) if isinstance(request, bytes) else request
            clean = checked(message, upstream.ensembles, self.limits)
        except BaseException as error:
            self.invalid += isinstance(error, Refused)
            self.admission.leave(None)
            raise
        task = asyncio.create_task(self._answer(upstream, clean.model_name, clean.SerializeToString()))
        self._under_way.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def check_model(self, name: str, version: str) -> None:
        """Refuses a model that clients may not see, and everything while there is no server."""
        ensemble_named(name, version, self.server().ensembles)

    async def drained(self, timeout_s: float) -> bool:
        """Waits until every battle that was let in has been answered; whether that happened in time."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=timeout_s)
        return not self._under_way

    async def _answer(self, upstream: Upstream, ensemble: str, request: bytes) -> bytes:
        began = time.monotonic()
        latency: float | None = None
        try:
            answer = await upstream.infer(ensemble, request)
            latency = time.monotonic() - began
            return answer
        except asyncio.CancelledError as error:  # Its connection was closed: nobody cancels this.
            self.failed += 1
            raise UpstreamError(grpc.StatusCode.UNAVAILABLE, f"Not now: {self.closed}") from error
        except grpc.aio.AioRpcError as error:
            self.failed += 1
            if (
                error.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
                and self.upstream is not upstream
            ):
                raise UpstreamError(grpc.StatusCode.UNAVAILABLE, f"Not now: {self.closed}") from error
            details = error.details() or "The server gave no reason"
            passing = error.code() is grpc.StatusCode.CANCELLED or DEAD_PROCESS in details
            raise UpstreamError(grpc.StatusCode.UNAVAILABLE if passing else error.code(), details) from error
        finally:
            self.admission.leave(latency)

    def _forget(self, task: "asyncio.Task[bytes]") -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # Nobody else asks for the answer of a client that has gone.
