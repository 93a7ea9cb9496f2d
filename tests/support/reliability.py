"""The last column of docs/reliability.md: figures, each with the test that measured it, written by that test's run."""

import re
from collections.abc import Mapping, Sequence

_ROW = re.compile(r"^(\| \d+ \| .* \| )(.*?) ?\|$")
_ENTRY = re.compile(r"(.+) \(`(test_\w+)`\)")
SEPARATOR = "<br>"


def page_with(page: str, figures: Mapping[str, Sequence[str]]) -> str:
    """The page with the `figures` of a run by test, in the rows that name the test; others stay as they are."""
    return "\n".join(_row_with(line, figures) for line in page.split("\n"))


def _row_with(line: str, figures: Mapping[str, Sequence[str]]) -> str:
    found = _ROW.match(line)
    if found is None:
        return line
    named = [test for test in re.findall(r"`(test_\w+)`", found[1]) if test in figures]
    kept = [entry for entry in found[2].split(SEPARATOR) if entry and _test_of(entry) not in named]
    entries = [*(f"{figure} (`{test}`)" for test in named for figure in figures[test]), *kept]
    return f"{found[1]}{SEPARATOR.join(entries)} |" if entries else f"{found[1]}|"


def _test_of(entry: str) -> str | None:
    found = _ENTRY.fullmatch(entry)
    return found[2] if found else None
