"""tools/conformance: the table is whole, markers are read as pytest reads them, mistakes are caught."""

import json
import re
import subprocess
import textwrap
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TOOL = ROOT / "tools" / "conformance"
TABLE = ROOT / "docs" / "conformance.toml"


def run(*arguments):
    return subprocess.run(
        [str(TOOL), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def check(tmp_path):
    """Run the tool on a small table and one test module; returns (exit code, states by id, stderr)."""

    def check(source, table=None, name="test_it.py"):
        (tmp_path / "table.toml").write_text(table or SMALL)
        tests = tmp_path / "tests"
        tests.mkdir(exist_ok=True)
        (tests / name).write_text("import pytest\nfrom pytest import mark\n" + textwrap.dedent(source))
        done = run("--json", "--table", tmp_path / "table.toml", "--tests", tests)
        document = json.loads(done.stdout)
        states = {row["id"]: row["state"] for area in document["areas"] for row in area["requirements"]}
        return done.returncode, states, done.stderr

    return check


SMALL = """
[[area]]
number = 1
name = "one"
count = 3
requirements = [
  { id = "A-01", section = "1", level = "MUST", title = "a" },
  { id = "A-02", section = "1", level = "DESC", title = "b" },
  { id = "A-03", section = "1", level = "MUST^", title = "c", reason = "never" },
]
"""


def covered(states):
    return sorted(name for name, state in states.items() if state == "covered")


# --- the project's own table ------------------------------------------------------------------------------


def test_the_table_holds_all_444_requirements():
    areas = tomllib.loads(TABLE.read_text())["area"]
    assert [len(area["requirements"]) for area in areas] == [48, 40, 34, 24, 50, 37, 12, 38, 42, 8, 22, 19, 70]
    assert [area["number"] for area in areas] == list(range(1, 14))
    levels = Counter(row["level"].removesuffix("^") for area in areas for row in area["requirements"])
    assert levels == {"MUST": 195, "MUST NOT": 114, "SHOULD": 68, "SHOULD NOT": 19, "DESC": 48}


def test_every_title_is_short_and_none_is_there_twice():
    rows = [row for area in tomllib.loads(TABLE.read_text())["area"] for row in area["requirements"]]
    assert [row["id"] for row in rows if not 3 <= len(row["title"].split()) <= 9] == []
    assert [title for title, count in Counter(row["title"] for row in rows).items() if count > 1] == []


def test_the_projects_markers_are_sound_and_the_totals_come_last():
    done = run()
    assert (done.stderr, done.returncode) == ("", 0)
    last = done.stdout.splitlines()[-1]
    assert last.startswith("total of 444 requirements: ")
    numbers = [int(word) for word in last.replace(",", "").split() if word.isdigit()]
    assert sum(numbers[1:]) == numbers[0] == 444


def test_open_lists_exactly_the_open_ones_and_area_narrows(two_tests):
    folder = two_tests[1].parent
    (folder / "table.toml").write_text(SMALL + SMALL.replace("number = 1", "number = 2").replace("A-0", "B-0"))
    found = {}
    for number in (1, 2):
        [area] = json.loads(run("--json", "--area", str(number), *two_tests).stdout)["areas"]
        expected = [row["id"] for row in area["requirements"] if row["state"] == "open"]
        listing = run("--open", "--area", str(number), *two_tests).stdout
        # After the last blank line comes the table; before it, the ids.
        listed = [line.split()[0] for line in listing.splitlines() if re.match(r"[A-Z]+-[A-Z0-9-]+\b", line)]
        assert listed == expected
        found[number] = listed
    assert found == {1: ["A-02"], 2: ["B-01", "B-02"]}


def test_an_area_that_does_not_exist_is_wrong_usage():
    assert run("--area", "99").returncode == 2


# --- one requirement --------------------------------------------------------------------------------------


@pytest.fixture
def two_tests(tmp_path):
    """The options for a small table and tests of it, a body among them."""
    (tmp_path / "table.toml").write_text(SMALL)
    (tmp_path / "tests/bodies").mkdir(parents=True)
    source = "import pytest\n\n@pytest.mark.spec('A-01')\ndef test_{}(): pass\n"
    (tmp_path / "tests/test_one.py").write_text(source.format("one"))
    (tmp_path / "tests/bodies/two.py").write_text(source.format("two"))
    return ["--table", tmp_path / "table.toml", "--tests", tmp_path / "tests"]


def test_an_id_shows_the_requirement_its_tests_and_how_to_run_them(two_tests):
    done = run("A-01", *two_tests)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "A-01  MUST  1  (one)",
        "  a",
        "  tests/bodies/two.py::test_two  (run by the cells of tests/qemu and tests/vm)",
        "  tests/test_one.py::test_one",
        "  run: tools/test --spec A-01",
        "",
    ]
    [row] = json.loads(run("A-01", "--json", *two_tests).stdout)["requirements"]
    assert row["tests"] == ["tests/bodies/two.py::test_two", "tests/test_one.py::test_one"]
    lines = run("A-03", "A-02", *two_tests).stdout.splitlines()
    assert [line for line in lines if "A-0" in line or "reason" in line] == [
        *("A-03  MUST^  1  (one)", "  reasoned away: never", "A-02  DESC  1  (one)")
    ]


def test_an_id_that_does_not_exist_names_those_like_it(tmp_path):
    done = run("pci-com-1", "--tests", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pci-com-1: no such requirement in docs/conformance.toml; like it: PCI-COM-" in done.stderr
    assert "--search" in done.stderr and "Traceback" not in done.stderr


def test_a_word_finds_the_requirements_that_have_it(tmp_path):
    done = run("--search", "POISON", "--tests", tmp_path)
    rows = [row for area in tomllib.loads(TABLE.read_text())["area"] for row in area["requirements"]]
    expected = [row["id"] for row in rows if "poison" in row["title"].lower()]
    assert [line.split()[0] for line in done.stdout.splitlines()] == expected
    assert run("--search", "5.5.6.6.1", "--tests", tmp_path).stdout.count("BAL-P0") == 3
    done = run("--search", "no such word", "--tests", tmp_path)
    assert (done.returncode, done.stdout) == (1, "") and "no requirement has" in done.stderr


# --- reading markers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("@pytest.mark.spec('A-01')\ndef test_a(): pass", ["A-01"]),
        ("@mark.spec('A-01', 'A-02')\nasync def test_a(): pass", ["A-01", "A-02"]),
        ("pytestmark = pytest.mark.spec('A-01')\ndef test_a(): pass", ["A-01"]),
        ("pytestmark = [mark.slow, mark.spec('A-01')]\ndef test_a(): pass", ["A-01"]),
        ("@mark.spec('A-01')\nclass TestA:\n    def test_a(self): pass", ["A-01"]),
        ("class TestA:\n    pytestmark = mark.spec('A-01')\n    def test_a(self): pass", ["A-01"]),
        ("class TestA:\n    @mark.spec('A-01')\n    def test_a(self): pass", ["A-01"]),
        (
            "@mark.parametrize('x', [1, pytest.param(2, marks=pytest.mark.spec('A-01'))])\ndef test_a(x): pass",
            ["A-01"],
        ),
        (
            "@mark.parametrize('x', [pytest.param(2, marks=[mark.slow, mark.spec('A-01')])])\ndef test_a(x): pass",
            ["A-01"],
        ),
        (
            "CASES = [pytest.param(1, marks=mark.spec('A-01'))]\n"
            "@mark.parametrize('x', CASES)\ndef test_a(x): pass",
            ["A-01"],
        ),
        ("both = mark.spec('A-01')\n@both\ndef test_a(): pass", ["A-01"]),
        ("@mark.skipif(not hasattr(pytest, 'x'), reason='')\n@mark.spec('A-01')\ndef test_a(): pass", ["A-01"]),
        ("if True:\n    @mark.spec('A-01')\n    def test_a(): pass", ["A-01"]),
        ("TestA = mark.slow()(mark.spec('A-01')(list))", ["A-01"]),
    ],
)
def test_markers_count_wherever_pytest_takes_them(check, source, expected):
    code, states, errors = check(source)
    assert (code, errors) == (0, "")
    assert covered(states) == expected
    assert states["A-03"] == "reasoned away"


@pytest.mark.parametrize(
    "source",
    [
        "@pytest.mark.skip\n@mark.spec('A-01')\ndef test_a(): pass",
        "@pytest.mark.skip(reason='later')\n@mark.spec('A-01')\ndef test_a(): pass",
        "@mark.skipif(True, reason='later')\n@mark.spec('A-01')\ndef test_a(): pass",
        "@mark.xfail\n@mark.spec('A-01')\ndef test_a(): pass",
        "@mark.spec('A-01')\ndef test_a():\n    '''Later.'''\n    pytest.skip('later')",
        "pytestmark = [mark.skip, mark.spec('A-01')]\ndef test_a(): pass",
        "pytestmark = mark.skip\n@mark.spec('A-01')\nclass TestA:\n    def test_a(self): pass",
        "pytest.skip('later', allow_module_level=True)\n@mark.spec('A-01')\ndef test_a(): pass",
        "@mark.skip\nclass TestA:\n    @mark.spec('A-01')\n    def test_a(self): pass",
        "@mark.spec('A-01')\nclass TestA:\n    @mark.skip\n    def test_a(self): pass",
        "@mark.parametrize('x', [pytest.param(1, marks=[mark.skip, mark.spec('A-01')])])\ndef test_a(x): pass",
        "@mark.skip\n@mark.parametrize('x', [pytest.param(1, marks=mark.spec('A-01'))])\ndef test_a(x): pass",
        "pytestmark = mark.spec('A-01')\ndef helper(): pass",
        "TestA = mark.skip()(mark.spec('A-01')(list))",
    ],
)
def test_what_never_runs_or_need_not_pass_covers_nothing(check, source):
    code, states, errors = check(source)
    assert (code, errors) == (0, "")
    assert covered(states) == []


# --- mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("@mark.spec('B-01')\ndef test_a(): pass", "test_it.py:3: 'B-01' is no id of the table"),
        ("@mark.skip\n@mark.spec('B-01')\ndef test_a(): pass", "'B-01' is no id"),
        (
            "@mark.spec('A-03')\ndef test_a(): pass",
            "A-03 is reasoned away, and tests/test_it.py::test_a covers it",
        ),
        ("@mark.spec('A-01')\ndef helper(): pass", "marks no test"),
        ("@mark.spec\ndef test_a(): pass", "marks no test"),
        ("machine = mark.spec('A-01')(list)", "marks no test"),
        ("@mark.spec()\ndef test_a(): pass", "without an id"),
        ("@mark.spec(*NAMES)\ndef test_a(): pass", "string literal"),
        ("def test_a(: pass", "cannot be parsed"),
    ],
)
def test_a_mistake_in_a_marker_is_an_error(check, source, complaint):
    code, _, errors = check(source)
    assert code == 1
    assert complaint in errors


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('"A-02"', '"A-01"', "A-01 is there twice"),
        ("count = 3", "count = 4", "area 1 has 3 rows, not 4"),
        ('"MUST^"', '"MAY"', "A-03 has the level 'MAY'"),
        ('"never"', '" "', "A-03 has an empty reason"),
    ],
)
def test_a_mistake_in_the_table_is_an_error(check, old, new, complaint):
    code, _, errors = check("def test_a(): pass", table=SMALL.replace(old, new))
    assert code == 1
    assert complaint in errors


def test_a_table_that_is_no_table_is_one_line_and_no_traceback(tmp_path):
    (tmp_path / "table.toml").write_text("[[area]]\nnumber = 1\n")
    done = run("--table", tmp_path / "table.toml", "--tests", tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
