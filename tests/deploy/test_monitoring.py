"""Prometheus rules, Alertmanager and the Grafana dashboard, checked with Prometheus' own tools."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

MONITORING = Path(__file__).parents[2] / "docker" / "monitoring"
TOOLS = "PREFERENCE_DEPLOY_TOOLS"


def run(tool: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Runs a tool of Prometheus, where `make check-deploy` runs and the machine has it."""
    if TOOLS not in os.environ:
        pytest.skip("`make check-deploy` runs the tests that need its tools")
    if shutil.which(tool) is None:
        assert "CI" not in os.environ, f"`{tool}` is not installed: see .ci/install-container-tools"
        pytest.skip(f"`{tool}` is not installed")
    return subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


def queries() -> list[str]:
    """Every query of the dashboard."""
    dashboard = json.loads((MONITORING / "grafana" / "dashboards" / "preference-ensemble.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The configuration, to be changed."""
    return Path(shutil.copytree(MONITORING, tmp_path / "monitoring"))


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_each_alert_fires_when_it_should_and_not_otherwise() -> None:
    result = run("promtool", "test", "rules", MONITORING / "alerts_test.yml")
    assert result.returncode == 0, result.stdout + result.stderr
    alerts = set(re.findall(r"alert: (\w+)", (MONITORING / "alerts.yml").read_text()))
    assert alerts == set(re.findall(r"alertname: (\w+)", (MONITORING / "alerts_test.yml").read_text()))
    assert len(alerts) >= 6


@pytest.mark.parametrize(
    ("old", "new"), [("== 0", "== 2"), ("> 0.01", "> 0.5"), ('reason="REJECTED"', 'reason="OTHER"')]
)
def test_the_tests_of_the_alerts_find_a_wrong_rule(copy: Path, old: str, new: str) -> None:
    change(copy / "alerts.yml", old, new)
    assert run("promtool", "test", "rules", copy / "alerts_test.yml").returncode != 0


def test_prometheus_and_alertmanager_accept_their_configuration(copy: Path) -> None:
    assert run("promtool", "check", "config", MONITORING / "prometheus.yml").returncode == 0
    assert run("amtool", "check-config", MONITORING / "alertmanager.yml").returncode == 0
    change(copy / "prometheus.yml", "scrape_interval", "scrape_intervall")
    change(copy / "alertmanager.yml", "receiver: page", "receiver: pager")
    assert run("promtool", "check", "config", copy / "prometheus.yml").returncode != 0
    assert run("amtool", "check-config", copy / "alertmanager.yml").returncode != 0


def test_prometheus_understands_every_query_of_the_dashboard(tmp_path: Path) -> None:
    rules: list[dict[str, Any]] = [
        {"record": f"panel_{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, query in enumerate(queries())
    ]
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    result = run("promtool", "check", "rules", path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(rules) >= 10
