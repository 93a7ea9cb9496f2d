"""What the documents quote is what the code says."""

import ast
import re
import runpy
from pathlib import Path

import pytest
from reliability import page_with

ROOT = Path(__file__).parents[1]
TROUBLESHOOTING = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
VARIABLE = "…"


def constants_of(tree):
    """The texts of a file that have a name."""
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(name)], value=ast.Constant(str(text))):
                yield name, text


def texts_of(tree, constants):
    """Every text in a file; what is filled in is `…`, unless it is one of `constants`."""
    for node in ast.walk(tree):
        match node:
            case ast.Constant(str(text)):
                yield text
            case ast.JoinedStr(parts):
                yield "".join(filled(part, constants) for part in parts)


def filled(part, constants):
    match part:
        case ast.Constant(value):
            return str(value)
        case ast.FormattedValue(ast.Name(name)):
            return constants.get(name, VARIABLE)
    return VARIABLE


@pytest.fixture(scope="module")
def printed():
    paths = [path for part in ROOT.glob("*/preference_*") for path in part.rglob("*.py")]
    paths += (ROOT / "model_repository").rglob("*.py")
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
    constants = dict(pair for tree in trees for pair in constants_of(tree))
    return "\n".join(text for tree in trees for text in texts_of(tree, constants))


@pytest.mark.parametrize("quote", re.findall("“(.*?)”", TROUBLESHOOTING))
def test_a_message_quoted_in_troubleshooting_is_printed_by_the_code(printed, quote):
    parts = [re.escape(part) for part in re.split(f"`?{VARIABLE}`?", quote)]
    assert any(parts)
    assert re.search("[^\n]*?".join(parts), printed), quote


def test_the_page_of_the_configuration_is_what_make_docs_writes():
    page = runpy.run_path(str(ROOT / "docs" / "generate_configuration.py"))["text"]()
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == page, "run `make docs`"


def anchors_of(document):
    """What a link may name in a document: its headings, as GitHub writes them."""
    headings = re.findall("^#+ (.*)", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).replace(" ", "-").lower() for heading in headings}


@pytest.mark.parametrize(
    "document", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_a_link_within_the_documents_leads_somewhere(document):
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", (ROOT / document).read_text(encoding="utf-8"))
    for name, anchor in links:
        target = (ROOT / document).parent / name if name else ROOT / document
        assert target.exists(), name
        assert not anchor or anchor in anchors_of(target), anchor


def test_every_test_that_the_page_on_reliability_names_is_there():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    tests = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 40
    assert sorted(named - tests) == []


def test_figures_of_a_run_take_the_place_of_those_of_the_same_test():
    page = "# Page\n| 1 | promise | `test_a`, `test_b` | old (`test_a`)<br>2 s (`test_b`)<br>open: x |\n"
    page += "| 2 | p | `test_c` | |"
    written = page_with(page, {"test_a": ["1 s", "3 s"], "test_c": ["4 s"], "test_other": ["5 s"]})
    assert written.splitlines()[1:] == [
        "| 1 | promise | `test_a`, `test_b` | 1 s (`test_a`)<br>3 s (`test_a`)<br>2 s (`test_b`)<br>open: x |",
        "| 2 | p | `test_c` | 4 s (`test_c`) |",
    ]
