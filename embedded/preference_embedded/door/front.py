"""The door as one object for the thread that starts and supervises the server: an event loop in a thread of its own.

Every method blocks until it is done, and may be called from any one thread.
"""

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped]

from preference_core.errors import ServerError
from preference_embedded.door import rpc
from preference_embedded.door.admission import Admission
from preference_embedded.door.contract import Limits
from preference_embedded.door.desk import Desk
from preference_embedded.door.tls import ServerTls
from preference_embedded.door.upstream import ProbeSize, Upstream
from preference_embedded.door.web import HttpSide

T = TypeVar("T")

#: For answers to go out once the battles behind them are done.
FLUSH_S = 2.0


@dataclass(frozen=True)
class DoorOptions:
    """What the door takes, and how large a battle can get. `minimum` requests are always let in."""

    limits: Limits
    probe: ProbeSize
    latency_goal_s: float
    minimum: int
    tls: ServerTls | None = None


class Door:
    """Listens from `start` to `stop`; lets battles in while a server is attached."""

    def __init__(self, options: DoorOptions) -> None:
        self._options = options
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="preference-door", daemon=True)
        self._desk = Desk(options.limits, Admission(options.latency_goal_s, options.minimum))
        self._http = HttpSide(self._desk)
        self._rpc: Any = None
        self._retired: list[Upstream] = []

    def start(self, address: str, ports: Mapping[str, int]) -> None:
        """Listens on `ports` (`grpc`, `http`, `metrics`). Until a server is attached, it says that it is starting."""
        self._thread.start()
        self._do(self._start(address, ports))

    def attach(self, urls: Mapping[str, str], ensembles: Sequence[str], timeout_s: float) -> None:
        """Has the server at `urls` answer first battles through `ensembles`, then lets clients' in.

        Raises `ServerError` for a server that does not answer them in time, or answers with errors.
        """
        self._do(self._attach(urls, ensembles), timeout_s, "The server did not answer a first battle")

    def detach(self, reason: str) -> None:
        """Lets nothing in, because of `reason`. Battles under way fail once their server is gone."""
        self._do(self._detach(reason))

    def broken(self) -> str | None:
        """Why the attached server must be restarted, None while all is well."""
        upstream = self._desk.upstream
        return None if upstream is None else self._do(_result_of(upstream.broken))

    def drain(self, timeout_s: float) -> bool:
        """Lets nothing in, and waits for the answers to all that is under way; whether they came in time."""
        if not self._thread.is_alive():
            return True
        self._loop.call_soon_threadsafe(self._close)
        return self._do(self._desk.drained(timeout_s))

    def stop(self) -> None:
        """Closes the ports."""
        if not self._thread.is_alive():
            return
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _close(self) -> None:
        self._desk.closed = "the server is stopping"

    async def _start(self, address: str, ports: Mapping[str, int]) -> None:
        tls = self._options.tls
        context = None if tls is None else tls.context()
        self._rpc = grpc.aio.server(options=rpc.options(self._options.limits.message_bytes))
        self._rpc.add_generic_rpc_handlers(rpc.handlers(self._desk))
        host = f"[{address}]" if ":" in address else address
        target = f"{host}:{ports['grpc']}"
        try:
            if tls is None:
                self._rpc.add_insecure_port(target)
            else:
                self._rpc.add_secure_port(target, tls.credentials())
            await self._rpc.start()
            await self._http.start(address, ports["http"], ports["metrics"], context)
        except (OSError, RuntimeError) as error:
            raise ServerError(f"The door cannot listen on `{target}` and the ports beside it: {error}") from error

    async def _attach(self, urls: Mapping[str, str], ensembles: Sequence[str]) -> None:
        upstream = Upstream(urls["grpc"], ensembles, self._options.probe)
        try:
            await upstream.open()
        except BaseException:
            await upstream.close()
            raise
        for retired in self._retired:  # Only now: closing a connection cancels what is under way on it.
            await retired.close()
        self._retired.clear()
        self._http.forward_to(urls["http"], urls["metrics"])
        self._desk.upstream = upstream
        self._desk.closed = None

    async def _detach(self, reason: str) -> None:
        self._desk.closed = reason
        if self._desk.upstream is not None:
            self._retired.append(self._desk.upstream)
            self._desk.upstream = None

    async def _stop(self) -> None:
        self._close()
        if self._rpc is not None:
            await self._rpc.stop(FLUSH_S)
        await self._http.stop()
        for upstream in (*self._retired, self._desk.upstream):
            if upstream is not None:
                await upstream.close()

    def _do(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None, late: str = "") -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout_s)
        except FutureTimeoutError as error:
            future.cancel()
            raise ServerError(f"{late} within {timeout_s:g} s") from error
        except BaseException:
            future.cancel()
            raise


async def _result_of(function: Any) -> Any:
    return function()
