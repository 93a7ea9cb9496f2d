"""The bill of materials of the image, read by CycloneDX's own validator."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = "PREFERENCE_DEPLOY_TOOLS"
VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
sys.exit(str(JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read()) or "") or None)
"""
pytestmark = pytest.mark.skipif(
    TOOLS not in os.environ, reason="`make check-deploy` runs the tests that need its tools"
)


@pytest.fixture(scope="module")
def bill() -> dict[str, Any]:
    """What `make sbom` writes."""
    done = subprocess.run(["make", "sbom"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads((ROOT / "build/sbom.json").read_text()))


def mistakes(bill: dict[str, Any]) -> str:
    """What CycloneDX's schema says against a bill."""
    line = [f"{os.environ[TOOLS]}/python", "-c", VALIDATE]
    done = subprocess.run(line, input=json.dumps(bill), capture_output=True, text=True, check=False)
    return done.stderr


def test_the_bill_is_valid_and_the_validator_finds_what_is_not(bill: dict[str, Any]) -> None:
    assert mistakes(bill) == ""
    assert "Unlisted" in mistakes(bill | {"Unlisted": 1})
    assert mistakes(bill | {"bomFormat": "SPDX"}) != ""


def test_the_bill_names_every_package_that_the_image_installs_with_its_hashes(bill: dict[str, Any]) -> None:
    locked = (ROOT / "docker/requirements.txt").read_text().replace("\\\n", " ")
    expected = {
        (name, version, frozenset(re.findall("sha256:([0-9a-f]{64})", rest)))
        for name, version, rest in re.findall(r"^([\w.-]+)==(\S+)(.*)$", locked, re.MULTILINE)
    }
    found = {
        (
            part["name"],
            part["version"],
            frozenset(h["content"] for ref in part["externalReferences"] for h in ref["hashes"]),
        )
        for part in bill["components"]
    }
    assert found == expected
    assert len(found) >= 3
