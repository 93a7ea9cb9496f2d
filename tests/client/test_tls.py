"""TLS and mutual TLS: whoever is not trusted is refused, in both directions."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from preference_client import Scorer, Tls
from preference_core.battles.battle import Battle
from preference_core.errors import UnavailableError, UserError

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")

BATTLE = Battle(("q",), ("a",), ("b",))


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ca.pem`, and `server`, `client` and `stranger` `.pem` and `.key`; the stranger signed himself."""
    folder = tmp_path_factory.mktemp("certificates")
    new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    for name in ("ca", "stranger"):
        _openssl(folder, *new, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    for name in ("server", "client"):
        alternative = ["-addext", "subjectAltName=DNS:localhost"]
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", *alternative]
        _openssl(folder, *new, *signed, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", "/CN=localhost")
    return folder


@pytest.fixture
def mutual(triton: Any, certificates: Path) -> Iterator[Any]:
    """The server, with mutual TLS."""
    triton.stop()
    pair = ((certificates / "server.key").read_bytes(), (certificates / "server.pem").read_bytes())
    authority = (certificates / "ca.pem").read_bytes()
    triton.start(credentials=grpc.ssl_server_credentials([pair], authority, require_client_auth=True))
    return triton


def test_who_is_trusted_by_both_sides_is_served(mutual: Any, certificates: Path) -> None:
    tls = Tls(certificates / "ca.pem", certificates / "client.key", certificates / "client.pem")
    with Scorer(mutual.url, tls=tls) as scorer:
        assert scorer.score(BATTLE).id == "1"


@pytest.mark.parametrize("name", [None, "stranger"])
def test_a_client_without_or_with_a_wrong_certificate_is_refused(
    mutual: Any, certificates: Path, name: str | None
) -> None:
    own = {} if name is None else {"private_key": f"{name}.key", "certificate_chain": f"{name}.pem"}
    tls = Tls(certificates / "ca.pem", **{option: certificates / file for option, file in own.items()})
    with pytest.raises(UnavailableError):
        Scorer(mutual.url, tls=tls)


def test_a_server_that_is_not_trusted_gets_nothing(mutual: Any, certificates: Path) -> None:
    tls = Tls(certificates / "stranger.pem", certificates / "client.key", certificates / "client.pem")
    with pytest.raises(UnavailableError):
        Scorer(mutual.url, tls=tls)


def test_a_client_without_tls_is_refused(mutual: Any) -> None:
    with pytest.raises(UnavailableError):
        Scorer(mutual.url)


def test_half_a_pair_of_files_for_mutual_tls_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="both"):
        Tls(private_key=tmp_path / "key.pem")
