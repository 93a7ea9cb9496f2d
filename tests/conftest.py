"""Every test begins with the same environment, whatever the shell or the CI has set."""

import os
from pathlib import Path

import pytest

#: Names a file of real battles in the published format, which is not part of the project.
REAL_BATTLES = "PREFERENCE_REAL_BATTLES"
#: They colour what commands print, send gRPC to a proxy, or name another server.
FOREIGN = (
    *("FORCE_COLOR", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE"),
    *("grpc_proxy", "http_proxy", "https_proxy", "all_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"),
    *("PREFERENCE_URL", "HF_TOKEN"),
)

# At import, before a library reads them; processes that tests start inherit it.
for _name in FOREIGN:
    os.environ.pop(_name, None)


@pytest.fixture(scope="session")
def real_battles():
    """Real human-judged battles, where the environment names some."""
    if REAL_BATTLES not in os.environ:
        pytest.skip(f"{REAL_BATTLES} names no file of real battles")
    return Path(os.environ[REAL_BATTLES]).resolve()
