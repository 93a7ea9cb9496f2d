"""Every test begins with the same environment, whatever the shell or the CI has set."""

import os
import sys
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from reliability import page_with

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


#: Names the page into which a run writes what its tests have measured.
RELIABILITY = "PREFERENCE_RELIABILITY_PAGE"


@pytest.fixture
def measured(request):
    """Takes a figure that a test has measured, for the summary and the page: `measured("12 battles/s")`."""
    return lambda figure: request.node.user_properties.append(("measured", figure))


def pytest_terminal_summary(terminalreporter):
    figures = {}
    for report in terminalreporter.getreports("passed"):
        test = report.nodeid.rpartition("::")[2].partition("[")[0]
        found = [figure for name, figure in report.user_properties if name == "measured"]
        if found:
            figures.setdefault(test, []).extend(found)
    for test, found in figures.items():
        terminalreporter.write_line(f"{test}: {'; '.join(found)}")
    if figures and RELIABILITY in os.environ:
        page = Path(os.environ[RELIABILITY])
        page.write_text(page_with(page.read_text(encoding="utf-8"), figures), encoding="utf-8")


@pytest.fixture(scope="session")
def real_battles():
    """Real human-judged battles, where the environment names some."""
    if REAL_BATTLES not in os.environ:
        pytest.skip(f"{REAL_BATTLES} names no file of real battles")
    return Path(os.environ[REAL_BATTLES]).resolve()


def closure_of(requirement_name):
    """The installed distributions that the named one declares, directly and indirectly."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement(requirement_name)]
    while waiting:
        wanted = waiting.pop()
        key = f"{wanted.name.lower()}[{','.join(sorted(wanted.extras))}]"
        if key in found:
            continue
        found[key] = distribution(wanted.name)
        for text in found[key].requires or ():
            needed = Requirement(text)
            extras = wanted.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return found.values()


@pytest.fixture(scope="session")
def bare_environment():
    """Makes a virtual environment that holds what one of this project's distributions declares, and nothing else.

    The project's own distributions are left out. What is installed here is linked, not installed again.
    """

    def make(folder, requirement_name):
        venv.create(folder, with_pip=False)
        site = next((folder / "lib").glob("python3*")) / "site-packages"
        for found in closure_of(requirement_name):
            if found.metadata["Name"].lower().startswith("preference-"):
                continue
            for top in {Path(str(file)).parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
                if not (site / top).exists():
                    (site / top).symlink_to(found.locate_file(top))
        return folder / "bin" / Path(sys.executable).name

    return make
