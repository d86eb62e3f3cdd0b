"""tools/faults: the list is whole, tests are counted by level, and what is missing is an error."""

from __future__ import annotations

import json
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

TOOLS = next(top for top in Path(__file__).resolve().parents if (top / "pyproject.toml").exists()) / "tools"
sys.path.insert(0, str(TOOLS))

from lab import LabError, cli_faults, faults  # noqa: E402

SMALL = """
real = 1
[[area]]
name = "one"
count = 3
cases = [
  { id = 1, case = "a | b", does = "refused" },
  { id = 2, case = "c", does = "told" },
  { id = "R1", case = "d", does = "e" },
]
"""

ALL = """
    import pytest
    from hypothesis import given
    @pytest.mark.fault(1, "R1")
    def test_a(): pass
    @pytest.mark.fault(2)
    @given(x=1)
    def test_b(x): pass
"""


@pytest.fixture
def run(tmp_path, capsys):
    """Run the tool on a small list and some tests; returns (exit code, what it printed, stderr)."""
    (tmp_path / "page.md").write_text(f"before\n\n{faults.BEGIN}\n{faults.END}\n\nafter\n")
    options = [f"--{name}={tmp_path / place}" for name, place in (("list", "list.toml"), ("page", "page.md"))]

    def run(*arguments, table=SMALL, **tests):
        (tmp_path / "list.toml").write_text(table)
        for place, source in tests.items():
            path = tmp_path / "tests" / f"{place.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(source))
        code = cli_faults.main([*options, f"--tests={tmp_path / 'tests'}", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    run.page = tmp_path / "page.md"
    return run


def test_the_list_holds_100_cases_and_18_rules():
    document = tomllib.loads(faults.LIST.read_text())
    ids = [case["id"] for area in document["area"] for case in area["cases"]]
    assert ids == [*range(1, 101), *(f"R{number}" for number in range(1, 19))]
    assert document["real"] >= 45


def test_the_levels_are_those_of_the_place_the_kind_and_the_marker(run):
    body = "import pytest\n@pytest.mark.fault(2)\ndef test_it(cell): pass\n"
    adopter = "from tests.bodies import Cell, body\n"
    killed = """
        import pytest
        from hypothesis.stateful import RuleBasedStateMachine
        @pytest.mark.fault(1, level="K")
        def test_k(): pass
        TestModel = pytest.mark.fault(2)(RuleBasedStateMachine.TestCase)
    """
    code, out, err = run(
        *("--json", "--write"),
        unit__drivers__test_one=ALL,
        unit__binding__test_two=ALL.replace("2", "1"),
        bodies__body=body,
        bodies__other=body.replace("test_it", "test_that_nothing_adopts"),
        qemu__test_three=adopter,
        vm__test_four=killed,
    )
    assert code == 1 and err.splitlines() == [
        "tests/bodies/other.py: tests/bodies/other.py::test_that_nothing_adopts is of a body that nothing adopts"
    ]
    found = {case["id"]: case for case in json.loads(out)["cases"]}
    assert {ident: case["levels"] for ident, case in found.items()} == {1: "SXFVK", 2: "SFHQV", "R1": "SX"}
    assert found[1]["tests"]["tests/unit/binding/test_two.py::test_b"] == "XF"
    assert found[2]["tests"]["tests/bodies/body.py::test_it"] == "Q"
    page = run.page.read_text()
    assert page.startswith("before\n") and page.endswith("\nafter\n")
    assert "2 cases, 2 of them with a test on a real QEMU, daemon or kernel." in page
    assert "| 1 | a \\| b | refused | **S** `one::a`<br>" in page and "**V K** `four::k`" in page
    assert run(bodies__other="x = 1\n")[0] == 0


@pytest.mark.parametrize(
    ("tests", "table", "complaint"),
    [
        ({"unit__test_a": "x = 1\n"}, SMALL, "2: no test: c"),
        ({"unit__test_a": ALL}, SMALL, "0 cases have a test on a real QEMU, daemon or kernel, fewer than 1"),
        ({"qemu__test_a": ALL}, SMALL, "page.md is not what the tests say: run tools/faults --write"),
        ({"qemu__test_a": ALL.replace("(2)", "(3)")}, SMALL, "test_a.py:6: 3 is no id of faults.toml"),
        ({"qemu__test_a": ALL.replace("(2)", "(2, level='Z')")}, SMALL, "has the level 'Z'"),
        ({"qemu__test_a": ALL.replace("(2)", "(2, by='K')")}, SMALL, "a fault marker with 'by'"),
        ({"qemu__test_a": ALL.replace("(2)", "(2.5)")}, SMALL, "an id has to be a number or string literal"),
        ({"qemu__test_a": ALL.replace("(2)", "()")}, SMALL, "a fault marker without an id"),
        ({"qemu__test_a": ALL.replace("def test_b", "def b")}, SMALL, "a fault marker that marks no test"),
        ({"qemu__test_a": ALL.replace("def test_b", "def test_b(")}, SMALL, "cannot be parsed"),
        ({"qemu__test_a": ALL}, SMALL.replace("id = 2", "id = 1"), "1 is there twice"),
        ({"qemu__test_a": ALL}, SMALL.replace("count = 3", "count = 4"), "one has 3 cases, not 4"),
    ],
)
def test_what_is_missing_or_wrong_is_an_error(run, tests, table, complaint):
    code, _, err = run(table=table, **tests)
    assert code == 1 and complaint in err


def test_a_case_is_shown_with_its_tests(run):
    code, out, _ = run("r1", "1", qemu__test_a=ALL)
    assert code == 0
    assert out.splitlines()[:3] == ["R1  d  (one)", "  e", "  Q   tests/qemu/test_a.py::test_a"]
    with pytest.raises(LabError, match="no such case") as caught:
        run("99", qemu__test_a=ALL)
    assert caught.value.exit_code == 2
    with pytest.raises(LabError, match="cannot be read as a list"):
        run(table="[[area]]\n", qemu__test_a=ALL)
