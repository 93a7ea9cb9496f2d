"""The way from battles to answers of one ensemble: requests are built here, `servers` sends each of them once.

Who calls it decides about retries, order and how many requests are under way. It outlives a fork of its process.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Any

from preference_client.codec import Ensemble, bytes_tensor, weights_tensor
from preference_client.connection import Connection, Request, Tls, check_url, infer_message
from preference_client.retries import Patience
from preference_client.servers import Call, Servers, closed
from preference_core import tensors
from preference_core.battles.battle import Battle
from preference_core.errors import ServerError, UserError


class Transport:
    """The way to one ensemble. Every method may be called from any thread, and in a forked process."""

    def __init__(
        self,
        urls: Sequence[str],
        model: str,
        tls: Tls | None = None,
        weights: Mapping[str, float] | None = None,
        patience: Patience | None = None,
    ) -> None:
        """Connects to `urls` (`host:port` each) and asks for the ensemble's labels and members.

        Raises `ServerError` at once if none answers, or if they serve different things; as long as none is ready, one
        that is starting is waited for. `weights` go with every request.
        """
        if not urls:
            raise UserError("No address of a server is given, expected host:port")
        for url in urls:
            check_url(url)
        connect = partial(Connection, model=model, tls=tls)
        self._open = partial(Servers, tuple(dict.fromkeys(urls)), connect, (patience or Patience()).deadline_s)
        self._closed = False
        self._templates: dict[int, Any] = {}
        self._fork = Lock()
        self._pid = os.getpid()
        self._servers = self._open()
        try:
            self._weights = weights_tensor(weights, self.ensemble.members)
        except BaseException:
            self._servers.close()
            raise

    @property
    def ensemble(self) -> Ensemble:
        """The ensemble that answers now."""
        return self._servers.ensemble

    @property
    def away(self) -> Mapping[str, str]:
        """Why servers are passed over now, by address."""
        return self._servers.away

    def request(self, battle: Battle, request_id: str, traceparent: str | None = None) -> Request:
        """A request for one battle. `request_id` appears in the server's logs, and its spans join `traceparent`."""
        template = self._template(len(battle.prompt))
        message = type(template)()
        message.CopyFrom(template)
        message.id = request_id
        contents = [bytes_tensor(getattr(battle, field), field) for field in tensors.FIELDS]
        if self._weights is not None:
            contents.append(self._weights)
        message.raw_input_contents.extend(contents)
        return Request(message, message.ByteSize(), traceparent)

    def send(self, request: Request, timeout_s: float, done: Callable[[], None]) -> Call:
        """Sends a request and returns at once; `done` is called, in another thread, when the call has ended.

        Raises `ServerError` if it is closed, and in a process that was forked with requests under way; any other forked
        process opens a new connection here.
        """
        if self._closed:
            raise closed()
        if self._pid != os.getpid():
            self._reopen()
        return self._servers.send(request, timeout_s, done)

    def close(self) -> None:
        """Ends the connections and cancels every call under way."""
        self._closed = True
        if self._pid == os.getpid():
            self._servers.close()

    def _reopen(self) -> None:
        with self._fork:
            if self._pid == os.getpid():
                return
            check_fork(len(self._servers.under_way))
            # Kept, because gRPC waits for threads that are not here when the channels of another process go.
            self._inherited = self._servers
            self._servers = self._open()
            self._pid = os.getpid()

    def _template(self, turns: int) -> Any:
        """The part of a request that all battles with this number of turns share."""
        if turns not in self._templates:
            shapes: dict[tensors.Tensor, tuple[int, ...]] = dict.fromkeys(tensors.BATTLE_INPUTS, (turns,))
            if self._weights is not None:
                weights = tensors.weights(len(self.ensemble.members))
                shapes[weights] = weights.dims
            self._templates[turns] = infer_message(self.ensemble.model, shapes)
        return self._templates[turns]


def check_fork(under_way: int) -> None:
    """Raises the error of a forked process that has inherited requests under way: gRPC does not survive that."""
    if under_way:
        raise ServerError(
            f"This process was forked while {under_way} requests were under way: their answers never come here",
            hint="Fork while nothing is scored, or start processes by multiprocessing's `spawn`.",
        )
