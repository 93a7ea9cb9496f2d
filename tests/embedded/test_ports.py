"""Choosing and refusing ports, with real sockets."""

import os
import socket

import pytest

from preference_core.errors import ServerError
from preference_embedded import ports


def test_free_ports_are_all_different() -> None:
    chosen = ports.resolve("127.0.0.1", {"grpc": 0, "http": 0, "metrics": 0})
    assert len(set(chosen.values())) == 3
    assert all(port > 0 for port in chosen.values())


def test_a_listening_port_is_refused_by_number_and_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(
            ServerError, match=rf"Port {port} for http is in use by .*\(process {os.getpid()}\)"
        ) as caught:
            ports.resolve("127.0.0.1", {"http": port})
        assert "--http-port" in str(caught.value.hint)
    assert ports.resolve("127.0.0.1", {"http": port}) == {"http": port}


def test_one_port_cannot_have_two_services() -> None:
    with pytest.raises(ServerError, match="Port 18001 is given to two services"):
        ports.resolve("127.0.0.1", {"grpc": 18001, "http": 18001})


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ServerError, match=r"Port 0 for grpc cannot be opened on `192.0.2.1`"):
        ports.resolve("192.0.2.1", {"grpc": 0})
