"""TLS of the door: its certificate and, for mutual TLS, the authority that clients' certificates must come from."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]

from preference_core.errors import UserError


@dataclass(frozen=True)
class ServerTls:
    """PEM files. With `client_authority` only clients with a certificate from it are let in."""

    certificate: Path
    private_key: Path
    client_authority: Path | None = None

    def context(self) -> ssl.SSLContext:
        """For HTTP. Raises `UserError` for files that are missing, damaged or do not belong together."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.certificate, self.private_key)
            if self.client_authority is not None:
                context.load_verify_locations(self.client_authority)
                context.verify_mode = ssl.CERT_REQUIRED
        except OSError as error:  # ssl.SSLError is one.
            names = [str(path) for path in (self.certificate, self.private_key, self.client_authority) if path]
            raise UserError(f"TLS with `{'`, `'.join(names)}` is not possible: {error.strerror or error}") from error
        return context

    def credentials(self) -> Any:
        """For gRPC, which does not say why it refuses a file; `context` has, before."""
        authority = None if self.client_authority is None else self.client_authority.read_bytes()
        pair = (self.private_key.read_bytes(), self.certificate.read_bytes())
        return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)
