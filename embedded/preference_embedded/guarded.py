"""The tritonserver behind its door: what `preference-serve` serves.

The server listens on sockets that only this user can reach; the door has the ports, and keeps them while the server is
restarted.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from preference_core.ensemble.settings import Config
from preference_embedded import ports
from preference_embedded.door.contract import Limits
from preference_embedded.door.front import Door, DoorOptions
from preference_embedded.door.tls import ServerTls
from preference_embedded.door.upstream import ProbeSize
from preference_embedded.launcher import Options, TritonServer
from preference_embedded.repository import ServedModel, ensembles_of, models_of

#: Of the time for stopping, what the server itself gets after the door has drained.
SERVER_STOP_SHARE = 0.2


class GuardedServer:
    """A `TritonServer` and its `Door`, started and stopped together. `options` names the door's address and ports."""

    def __init__(self, options: Options, door: DoorOptions) -> None:
        self._options = options
        self._wanted = {"grpc": options.grpc_port, "http": options.http_port, "metrics": options.metrics_port}
        self._server = TritonServer(replace(options, private=True))
        self._door = Door(door)
        self.log_file: Path = self._server.log_file

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """All models of the repository, the members among them."""
        return self._server.models

    @property
    def urls(self) -> Mapping[str, str]:
        """`host:port` by service: `grpc`, `http`, `metrics`."""
        return {service: ports.url(self._options.address, port) for service, port in self._wanted.items()}

    @property
    def release(self) -> str:
        """Which ensemble is served, with its version and content; "" if the repository does not say."""
        return self._server.release

    @property
    def pid(self) -> int:
        """Process id of the running tritonserver."""
        return self._server.pid

    def start(self, report: Callable[[str], None] = lambda step: None) -> None:
        """Opens the door, starts the server and returns once each ensemble has answered a battle.

        Raises what `TritonServer.start` raises, and `ServerError` when an ensemble does not answer as it should.
        """
        self._wanted = ports.resolve(self._options.address, dict(self._wanted))
        self._door.start(self._options.address, self._wanted)
        self._server.start(report)
        report("Answering a first battle")
        self._attach()

    def written_since(self) -> str:
        """What the repository holds now, if it is not what is served; "" otherwise."""
        return self._server.written_since()

    def lost(self) -> str | None:
        """What died, or no longer answers, since the start."""
        return self._server.lost() or self._door.broken()

    def restart(self) -> None:
        """Starts a broken server again. Clients are told so meanwhile; the ports stay open."""
        self._door.detach("the server is restarting")
        self._server.restart()
        self._attach()

    def stop(self) -> None:
        """Answers what was let in, refusing everything new, then ends the server and closes the door."""
        whole = self._options.stop_timeout_s
        try:
            self._door.drain(whole * (1 - SERVER_STOP_SHARE))
            self._server.stop(whole * SERVER_STOP_SHARE)
        finally:
            self._server.stop(0.0)
            self._door.stop()

    def _attach(self) -> None:
        server = self._server
        self._door.attach(server.urls, ensembles_of(server.models), self._options.start_timeout_s)


#: A server with or without a door in front.
Served = TritonServer | GuardedServer


def server_for(options: Options, door: DoorOptions) -> tuple[Served, bool]:
    """The server of a repository, and whether a door guards it: only ensembles can be checked.

    Raises `ArtefactError` for a repository that cannot be read.
    """
    guarded = bool(ensembles_of(models_of(options.repository)))
    return (GuardedServer(options, door) if guarded else TritonServer(options)), guarded


def door_options(config: Config, tls: ServerTls | None = None) -> DoorOptions:
    """The door for an ensemble, as its configuration says."""
    serving = config.serving
    return DoorOptions(
        limits=Limits(serving.max_text_bytes, serving.max_turns),
        probe=ProbeSize(max(member.max_tokens for member in config.members), serving.max_batch_size),
        latency_goal_s=serving.latency_goal_milliseconds / 1000,
        minimum=serving.max_batch_size,
        tls=tls,
    )
