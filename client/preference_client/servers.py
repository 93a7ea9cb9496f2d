"""The servers of one ensemble, used in turn: one that does not answer is passed over until it describes itself again.

It sends what it is given once, and knows nothing of battles. A thread of its own starts every call and alone knows the
servers: an exception that a signal raises inside gRPC, as Ctrl-C does in the main thread, leaves a channel that never
closes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from queue import Empty, Queue
from threading import Thread
from typing import Any

from preference_client.codec import Answer, Ensemble
from preference_client.connection import Connection, Request
from preference_client.retries import retry_delay_s
from preference_core.errors import PreferenceError, ServerError, UnavailableError

#: Once one server has answered, the others may take this long to be there from the start.
GRACE_S = 1.0
#: Between two attempts to reach a server that is away.
LONGEST_PAUSE_S = 2.0


class Call:
    """One request under way, or about to be."""

    __slots__ = ("_connection", "_error", "_future", "_given_up")

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._future: Any = None
        self._error: PreferenceError | None = None
        self._given_up = False

    @property
    def ensemble(self) -> Ensemble:
        """Which ensemble answered a call that was answered."""
        assert self._connection is not None
        return self._connection.ensemble

    def cancel(self) -> None:
        """Gives the request up; the server is told. Nothing happens to a call that has ended."""
        self._given_up = True
        if self._future is not None:
            self._future.cancel()

    def answer(self) -> Answer:
        """The answer of a call that has ended. Raises an error of the project's tree if it failed."""
        if self._error is not None:
            raise self._error
        assert self._connection is not None
        return self._connection.answer(self._future)

    def _start(self, connection: Connection, future: Any, done: Callable[[], None]) -> None:
        self._connection, self._future = connection, future
        if self._given_up:
            future.cancel()
        future.add_done_callback(lambda _: done())

    def _fail(self, error: PreferenceError, done: Callable[[], None]) -> None:
        self._error = error
        done()


@dataclass(slots=True, eq=False)
class _Server:
    """One address. Without a `connection` it is away: because of `error`, or not `asked` to the end yet."""

    url: str
    connection: Connection | None = None
    error: PreferenceError | None = None
    asked: bool = False
    failures: int = 0
    due_s: float = 0.0
    answered_s: float = float("-inf")


class Servers:
    """Connections to some addresses. They belong to one process: a fork inherits neither threads nor connections."""

    def __init__(self, urls: Sequence[str], connect: Callable[..., Connection], patience_s: float) -> None:
        """Asks all servers at once, by `connect(url, patience_s=)`, and returns when the first has answered.

        Raises what the first one raised if none answers, or `ServerError` if they serve different things.
        """
        self._connect = connect
        self._servers = [_Server(url) for url in urls]
        self._turn = 0
        self._closed = False
        self._ensemble: Ensemble | None = None
        self._outbox: Queue[Callable[[], None] | None] = Queue()
        self.under_way: set[Call] = set()
        for server in self._servers:
            self._ask(server, patience_s)
        self._wait_for_first()
        self._sender = Thread(target=self._work, name="preference-sender", daemon=True)
        self._sender.start()

    @property
    def ensemble(self) -> Ensemble:
        """What is served."""
        assert self._ensemble is not None
        return self._ensemble

    @property
    def away(self) -> Mapping[str, str]:
        """Why servers are passed over now, by address."""
        return {server.url: server.error.message for server in self._servers if server.error is not None}

    def send(self, request: Request, timeout_s: float, done: Callable[[], None]) -> Call:
        """Sends a request and returns at once; `done` is called, in another thread, when the call has ended."""
        call = Call()
        self.under_way.add(call)
        self._outbox.put(partial(self._send, call, request, timeout_s, done))
        if self._closed:
            raise closed()
        return call

    def close(self) -> None:
        """Ends the connections and cancels every call under way."""
        self._closed = True
        self._outbox.put(None)
        self._sender.join()

    def _wait_for_first(self) -> None:
        ends_s: float | None = None
        for _ in self._servers:
            try:
                found = self._outbox.get(timeout=None if ends_s is None else max(0.0, ends_s - time.monotonic()))
            except Empty:
                break
            assert found is not None
            found()
            if ends_s is None and self._ensemble is not None:
                ends_s = time.monotonic() + GRACE_S
        errors = [server.error for server in self._servers if server.error is not None]
        errors.sort(key=lambda error: isinstance(error, UnavailableError))  # A server that is away is not a mistake.
        if errors and (self._ensemble is None or not isinstance(errors[0], UnavailableError)):
            self._close_all()
            raise errors[0]

    def _work(self) -> None:
        while (step := self._outbox.get()) is not None:
            step()
        self._close_all()

    def _close_all(self) -> None:
        self._closed = True
        for server in self._servers:
            if server.connection is not None:
                server.connection.close()

    def _ask(self, server: _Server, patience_s: float = 0.0) -> None:
        """Makes a new connection, in a thread of its own: a server that is silent must not keep the others waiting."""
        server.asked = True

        def ask() -> None:
            found: Connection | PreferenceError
            try:
                found = self._connect(server.url, patience_s=patience_s)
            except PreferenceError as error:
                found = error
            except Exception as error:  # Whoever waits for the answer would wait forever.
                found = ServerError(f"{server.url} cannot be asked: {type(error).__name__}: {error}")
            self._outbox.put(partial(self._found, server, found))
            if self._closed and isinstance(found, Connection):
                found.close()

        Thread(target=ask, name="preference-connecting", daemon=True).start()

    def _found(self, server: _Server, found: Connection | PreferenceError) -> None:
        server.asked = False
        if isinstance(found, Connection):
            error = self._difference(found)
            if error is None:
                server.connection, server.error, self._ensemble = found, None, found.ensemble
                return
            found.close()
            found = error
        server.error = found
        self._pause(server)

    def _difference(self, found: Connection) -> ServerError | None:
        """Why a server may not join: what it serves is not what the others serve, or no longer means the same."""
        known, new = self._ensemble, found.ensemble
        others = [server.url for server in self._servers if server.connection is not None]
        if known is None or new == known:
            return None
        if others:
            return ServerError(
                f"{found.url} serves {new}, {others[0]} {known}", "Serve the same repository everywhere."
            )
        for name in ("labels", "members"):
            if getattr(new, name) != getattr(known, name):
                return ServerError(
                    f"{found.url} serves {new} with other {name}: {', '.join(getattr(new, name))}; they were "
                    f"{', '.join(getattr(known, name))}",
                    hint="Make a new `Scorer` for what is served now.",
                )
        return None

    def _pause(self, server: _Server) -> None:
        server.failures += 1
        pause_s = 0.0 if server.failures == 1 else min(retry_delay_s(server.failures - 1), LONGEST_PAUSE_S)
        server.due_s = time.monotonic() + pause_s

    def _send(self, call: Call, request: Request, timeout_s: float, done: Callable[[], None]) -> None:
        server = self._next()
        connection = server.connection
        try:
            if self._closed:
                raise closed()
            if connection is None:
                error = server.error or UnavailableError(f"{server.url} is asked what it serves")
                raise error if isinstance(error, ServerError) else ServerError(error.message, error.hint)
            future = connection.infer(request, timeout_s)
        except PreferenceError as error:
            self.under_way.discard(call)
            call._fail(error, done)
            return
        sent_s = time.monotonic()

        def ended() -> None:
            self.under_way.discard(call)
            self._outbox.put(partial(self._ended, server, connection, future, sent_s))
            done()

        call._start(connection, future, ended)

    def _ended(self, server: _Server, connection: Connection, future: Any, sent_s: float) -> None:
        """Learns from how a call ended. A lost connection stays open: others under way there may yet be answered."""
        if server.connection is not connection:
            return
        if connection.is_lost(future, answered_since=server.answered_s > sent_s):
            server.connection = None
            server.error = UnavailableError(f"The connection to {server.url} was lost")
            self._pause(server)
            self._ask_those_due()
        elif connection.is_answered(future):
            server.answered_s, server.failures = time.monotonic(), 0

    def _next(self) -> _Server:
        """The next server in turn; one that is away only if all are."""
        self._ask_those_due()
        for _ in self._servers:
            self._turn = (self._turn + 1) % len(self._servers)
            if self._servers[self._turn].connection is not None:
                break
        return self._servers[self._turn]

    def _ask_those_due(self) -> None:
        for server in self._servers:
            if server.connection is None and not server.asked and server.due_s <= time.monotonic():
                self._ask(server)


def closed() -> ServerError:
    """The error of everything that comes after `close`."""
    return ServerError("The scorer is closed")
