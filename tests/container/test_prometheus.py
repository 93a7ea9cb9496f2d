"""Prometheus with the project's own configuration and rules, on the running container."""

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from preference_embedded import ports

ROOT = Path(__file__).parents[2]


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts Prometheus; asks it. Only the server's address and the times are not the project's."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("`prometheus` is not installed: see .ci/install-container-tools")
    folder = Path(shutil.copytree(ROOT / "docker/monitoring", tmp_path / "monitoring"))
    for name, old, new in (
        ("prometheus.yml", r"triton:8002", "127.0.0.1:18002"),
        ("prometheus.yml", r"_interval: 10s", "_interval: 1s"),
        ("alerts.yml", r"for: \d+m", "for: 2s"),
    ):
        text = (folder / name).read_text()
        assert re.search(old, text)
        (folder / name).write_text(re.sub(old, new, text))
    port = ports.resolve("127.0.0.1", {"prometheus": 0})["prometheus"]
    line = [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    line += [f"--web.listen-address=127.0.0.1:{port}"]

    def ask(path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.load(answer)["data"]
        except OSError:
            assert process.poll() is None, log.read_text()
            return {}

    log = tmp_path / "prometheus.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(line, stdout=stream, stderr=stream)
    yield ask
    process.kill()
    process.wait()


def test_prometheus_has_the_counters_and_an_alert_fires_when_the_container_is_stopped(
    running: Any, prometheus: Callable[..., Any], answers: Callable[[], bool], eventually: Callable[..., None]
) -> None:
    def value(query: str) -> float:
        found = prometheus("query", query=query).get("result")
        return float(found[0]["value"][1]) if found else 0.0

    def firing() -> list[str]:
        alerts = prometheus("alerts").get("alerts", ())
        return [alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"]

    assert answers()
    eventually(lambda: value('min(preference_tokens{job="preference-ensemble"})') > 0)
    assert value("count(preference_tokens)") == 2
    assert value('up{job="preference-ensemble"}') == 1
    assert firing() == []
    running.compose("stop")
    eventually(lambda: firing() == ["PreferenceServerDown"])
    running.up()
    eventually(lambda: firing() == [])
