"""TCP ports of the server: free ones to choose, busy ones to refuse by name.

Knows nothing of what is served on them.
"""

import errno
import socket
from contextlib import ExitStack
from pathlib import Path

from preference_core.errors import ServerError

LISTENING = "0A"


def url(address: str, port: int) -> str:
    """`host:port` at which this machine reaches what listens on `address`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def resolve(address: str, wanted: dict[str, int]) -> dict[str, int]:
    """Ports by service name: every 0 in `wanted` becomes a free port, every other one is checked to be free.

    All sockets are held until all ports are known, so no port is given twice. Raises `ServerError` for a busy port.
    """
    explicit = [port for port in wanted.values() if port]
    if len(set(explicit)) < len(explicit):
        repeated = next(port for port in explicit if explicit.count(port) > 1)
        raise ServerError(f"Port {repeated} is given to two services", hint="Give each a port of its own.")
    with ExitStack() as stack:
        return {service: _bind(stack, address, port, service) for service, port in wanted.items()}


def _bind(stack: ExitStack, address: str, port: int, service: str) -> int:
    holder = stack.enter_context(socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET))
    if port:  # A port whose last connections are still closing is free, as it is for the server itself.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind((address, port))
    except OSError as error:
        raise _unusable(address, port, service, error) from error
    return int(holder.getsockname()[1])


def _unusable(address: str, port: int, service: str, error: OSError) -> ServerError:
    option = f"--{service}-port"
    if error.errno == errno.EADDRINUSE:
        process = process_listening_on(port)
        by = f" by {process}" if process else ""
        return ServerError(
            f"Port {port} for {service} is in use{by}",
            hint=f"Stop that process, or choose another port with `{option}` (0 takes a free one).",
        )
    return ServerError(
        f"Port {port} for {service} cannot be opened on `{address}`: {error.strerror}",
        hint=f"Choose an address of this machine with `--address` and a port above 1023 with `{option}`.",
    )


def process_listening_on(port: int) -> str | None:
    """`name (pid)` of the process that listens on a port, as far as /proc lets us see it."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for process in Path("/proc").glob("[0-9]*") if sockets else ():
        try:
            if any(str(file.readlink()) in sockets for file in (process / "fd").iterdir()):
                return f"`{(process / 'comm').read_text().strip()}` (process {process.name})"
        except OSError:
            continue
    return None


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == LISTENING and int(fields[1].rsplit(":", 1)[1], 16) == port:
                inodes.add(fields[9])
    return inodes
