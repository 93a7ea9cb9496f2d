"""What the supervisor does beyond one restart, which `test_app` shows on a real server."""

from pathlib import Path

import pytest

from preference_core.errors import ServerError
from preference_embedded import supervisor
from preference_embedded.supervisor import LogReader, supervise


class Breaking:
    """A server that breaks down as often as it is asked."""

    def __init__(self, log_file: Path) -> None:
        self.log_file = log_file
        self.restarts = 0
        self.release = "demo version 1 (content a)"
        self.written = ["", "demo version 2 (content b)", "demo version 2 (content b)", ""]
        self.reason: str | None = "tritonserver ended with status -11"

    def written_since(self) -> str:
        return self.written.pop(0)

    def lost(self) -> str | None:
        return self.reason

    def restart(self) -> None:
        self.restarts += 1


def test_a_server_that_keeps_breaking_down_is_given_up_with_the_last_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "INTERVAL_S", 0.0)
    log = tmp_path / "server.log"
    log.touch()
    server = Breaking(log)
    said: list[str] = []
    with pytest.raises(ServerError, match=r"broke down 4 times within 60 s: tritonserver ended with status -11"):
        supervise(server, lambda: False, said.append)  # type: ignore[arg-type]
    assert server.restarts == supervisor.MAX_BREAKDOWNS
    assert said[:2] == [
        "tritonserver ended with status -11; restarting the server",
        "the server is ready again: demo version 1 (content a)",
    ]


def test_a_version_written_beside_a_running_server_says_once_how_it_becomes_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("INTERVAL_S", "LOOK_INTERVAL_S"):
        monkeypatch.setattr(supervisor, name, 0.0)
    log = tmp_path / "server.log"
    log.touch()
    server = Breaking(log)
    server.reason = None
    said: list[str] = []
    supervise(server, lambda: not server.written, said.append)
    assert said == [
        "demo version 2 (content b) was written; demo version 1 (content a) is served until `preference-serve` is "
        "started again"
    ]


def test_only_new_whole_lines_worth_showing_are_read_from_the_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text('E1122 06:25:38.5 1 a.cc:1] "old"\n')
    reader = LogReader(log, "warning")
    with log.open("a") as file:
        file.write('W1122 06:25:38.5 1 a.cc:1] "first"\nI1122 06:25:38.5 1 a.cc:1] "not this"\nE1122 06:25:3')
        file.flush()
        assert reader.news() == ["first"]
        file.write('8.5 1 a.cc:1] "second"\n')
    assert reader.news() == ["second"]
    assert reader.news() == []
