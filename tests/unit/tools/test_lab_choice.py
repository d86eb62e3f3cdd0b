"""tools/test: what it runs for which options, paths, requirements and interpreters, and where."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

TOOLS = next(top for top in Path(__file__).resolve().parents if (top / "pyproject.toml").exists()) / "tools"
sys.path.insert(0, str(TOOLS))

from lab import LabError, arches, cli_test, conformance, fleet, machines, pythons, quick, selection, setup  # noqa: E402
from lab.floors import Outcome, Runner  # noqa: E402


@pytest.fixture
def noted(monkeypatch, tmp_path):
    """What tools/test would run, and how many lanes wide; nothing is installed, and nothing runs."""
    ran = []

    class Noting:
        python = ""

        def __init__(self, *of): ...

        def pytest(self, name, arguments, wrapper, *, qemu=None, programs=None, env=None):
            ran.append((name, arguments, env))
            return Outcome(name, ok=True, seconds=0.0, passed=1)

        def tool(self, name, command, *, quiet=False):
            ran.append((name, command, None))
            return Outcome(name, ok=True, seconds=0.0, passed=1)

    def run(steps, wide, done):
        ran.append(wide)
        return [step() for _, step in steps]

    monkeypatch.setattr(cli_test, "Runner", Noting)
    monkeypatch.setattr(cli_test.lanes, "run", run)
    monkeypatch.setattr(cli_test.setup, "packages", lambda names: None)
    monkeypatch.setattr(cli_test.setup, "venv", lambda interpreter: tmp_path)
    monkeypatch.setattr(cli_test, "_reports_folder", lambda: tmp_path)
    return ran


def test_the_wake_ups_run_alone_and_in_no_other_step(monkeypatch, noted):
    monkeypatch.setenv("UVIRTIO_RACE_SECONDS", "7")
    assert cli_test.main(["--unit", "--jobs", "3"]) == 0
    folder = TOOLS.parent / "tests/unit"
    [race] = folder.rglob("test_wakeups.py")
    marked = [
        str(folder / name)
        for name in (
            *("binding/test_rules.py", "binding/test_unreadable.py"),
            *("host/test_denylist.py", "host/test_whole.py"),
        )
    ]
    parts = [words for words in noted if isinstance(words, tuple) and words[0].startswith("unit ")]
    assert [name for name, _, _ in parts] == ["unit 1 of 2", "unit 2 of 2"]
    assert noted == [
        *(1, ("wake-ups", [str(race)], {"UVIRTIO_RACE_SECONDS": "7"})),
        *(3, *parts),
        ("unit, not as root", ["-m", "unprivileged", *(str(folder / name) for name in marked)], None),
        ("fuzz", [str(TOOLS / "fuzz"), "--runs", "1000000"], None),
    ]
    files = [Path(file) for _, arguments, _ in parts for file in arguments]
    assert sorted(files) == sorted(set(folder.rglob("test_*.py")) - {race})
    assert all(env is None for _, _, env in parts)
    noted.clear()
    assert cli_test.main(["--unit", "--jobs", "1"]) == 0
    assert noted[2:4] == [1, ("unit", [str(folder), f"--ignore={race}"], None)]
    noted.clear()
    one = f"{race}::test_no_wake_up_is_lost"
    assert cli_test.main([one, __file__]) == 0
    assert [words[:2] for words in noted if isinstance(words, tuple)] == [
        ("wake-ups", [one]),
        ("unit", [__file__]),
    ]


def test_quick_is_lint_and_the_floors_without_what_takes_long(noted, capsys):
    assert cli_test.main(["--quick"]) == 0
    steps = [words for words in noted if isinstance(words, tuple)]
    ran = {words[0]: words[1] for words in steps}
    parts = [f"unit {number} of 4" for number in (1, 2, 3, 4)]
    assert list(ran)[:7] == ["wake-ups", "qemu", "mypy", *parts]
    assert {"ruff check", "mypy of tools", "conformance", "faults", "unit, not as root", "fuzz"} <= set(ran)
    assert not {"docs", "bench, that it runs"} & set(ran)
    assert all(env == {"UVIRTIO_EXAMPLES": "20"} for name, _, env in steps if name in parts)
    top = selection.TESTS.parent
    told = capsys.readouterr().out
    for name in quick.LEFT_OUT:
        path, _, test = name.partition("::")
        text = (top / path).read_text()
        assert not test or f"def {test}(" in text, name
        assert name in told
        for step in ["qemu"] if name.startswith("tests/qemu/") else parts:
            assert (f"--deselect={name}" if test else f"--ignore={top / name}") in ran[step]
    assert "--sets=1" in ran["qemu"] and all("--sets=3" in ran[part] for part in parts)
    assert "the first sets (3 of tests/unit, 1 of tests/qemu), examples of hypothesis after 20" in told
    assert "races after 0.5 s, fuzz after 50,000 executions, bench, docs" in told
    assert ran["fuzz"][-1] == "50000"
    files = {Path(word) for part in parts for word in ran[part] if not word.startswith("--")}
    left_out = {top / name for name in quick.LEFT_OUT if name.startswith("tests/unit/")}
    [race] = (selection.TESTS / "unit").rglob("test_wakeups.py")
    assert files == set((selection.TESTS / "unit").rglob("test_*.py")) - left_out - {race}
    for more in ("--vm", "--lint", "--all", __file__):
        with pytest.raises(LabError, match="--quick chooses by itself") as caught:
            cli_test.main(["--quick", more])
        assert caught.value.exit_code == 2


def test_what_quick_leaves_out_is_not_collected():
    """A node id that pytest knows by another path would leave nothing out, without a word."""
    left_out = next(name for name in quick.LEFT_OUT if name.startswith("tests/unit/virtqueue/test_split.py::"))
    file = left_out.partition("::")[0]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    top = selection.TESTS.parent
    ids = [
        subprocess.run(
            [*command, *options, str(top / file)], cwd=top, capture_output=True, text=True, timeout=60
        ).stdout
        for options in ([], quick.options("unit"))
    ]
    assert left_out in ids[0] and left_out not in ids[1] and f"{file}::" in ids[1]


def test_files_are_dealt_out_each_once_by_their_size():
    every = set((selection.TESTS / "unit").rglob("test_*.py"))
    parts = selection.dealt(every, 3)
    assert sorted(file for part in parts for file in part) == sorted(every)
    sizes = [sum(file.stat().st_size for file in part) for part in parts]
    assert max(sizes) < 1.1 * min(sizes)
    assert selection.dealt(sorted(every, reverse=True), 3) == parts


def test_there_are_as_many_lanes_as_cores_and_with_quick_one_more(noted, monkeypatch):
    monkeypatch.setattr(cli_test, "vm_floor", lambda *of, **how: [("vm", lambda: Outcome("vm", True, 0.0, 1))])
    monkeypatch.setattr(cli_test.Runner, "compile", lambda *of: None, raising=False)
    for cores, whole, brief in ((1, 1, 1), (2, 2, 3), (64, 2, 3)):
        monkeypatch.setattr(cli_test.os, "cpu_count", lambda cores=cores: cores)
        for words, wide in (([], whole), (["--quick"], brief)):
            noted.clear()
            assert cli_test.main(words) == 0
            assert [one for one in noted if isinstance(one, int)] == [1, wide]


@pytest.mark.parametrize("order", ["no:randomly", "randomly"])
def test_sets_are_the_first_of_the_parameters_that_are_left(order, tmp_path):
    (tmp_path / "conftest.py").write_text(
        "def pytest_collection_modifyitems(items):\n"  # as tests/qemu leaves out what this QEMU lacks
        "    items[:] = [item for item in items if '[lacking' not in item.name]\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "both = pytest.mark.parametrize('x', ['b', 'a', 'c'])\n"
        "@both\ndef test_one(x): pass\n"
        "@both\n@pytest.mark.parametrize('y', ['lacking', 'd', 'c'])\ndef test_two(x, y): pass\n"
        "class TestThree:\n    @both\n    def test_one(self, x): pass\n"
        "def test_four(): pass\n"
    )
    command = Runner(Path(sys.prefix), tmp_path)._pytest(["--sets=2", str(tmp_path)], tmp_path / "x.xml", tmp_path)
    options = ["-c", f"{TOOLS.parent}/pyproject.toml", "-p", "tests.conftest", "-vv", "-p", order]
    done = subprocess.run([*command, *options], cwd=TOOLS.parent, capture_output=True, text=True, timeout=60)
    assert sorted(re.findall(r"::(\S+) PASSED", done.stdout)) == [
        *("TestThree::test_one[a]", "TestThree::test_one[b]", "test_four", "test_one[a]", "test_one[b]"),
        *("test_two[d-a]", "test_two[d-b]"),
    ], done.stdout


@pytest.mark.parametrize(
    ("arguments", "packages"),
    [
        (["--quick"], {name for floor in ("UNIT", "QEMU") for name in getattr(setup, f"FOR_{floor}")}),
        (["--lint"], {"python3-venv"}),
        (
            ["--unit"],
            {
                *("python3-venv", "gcc", "libc6-dev", "linux-libc-dev", "libatomic1", "busybox-static"),
                *("zsh", "fish", "groff"),
            },
        ),
        (["--qemu"], {"python3-venv", "qemu-system-x86", "qemu-system-common", "qemu-system-arm"}),
        (["--lint", "--qemu"], {"python3-venv", "qemu-system-x86", "qemu-system-common", "qemu-system-arm"}),
        ([], {name for floor in ("LINT", "UNIT", "QEMU", "VM") for name in getattr(setup, f"FOR_{floor}")}),
    ],
)
def test_each_floor_wants_its_own_packages_only(arguments, packages, monkeypatch):
    class Enough(Exception): ...

    def wanted(names):
        assert set(names) == packages
        raise Enough

    monkeypatch.setattr(cli_test.setup, "packages", wanted)
    with pytest.raises(Enough):
        cli_test.main(arguments)


# --- paths and node ids -------------------------------------------------------------------------------------


def test_paths_go_to_their_floors_and_come_from_here_or_from_the_checkout(monkeypatch):
    monkeypatch.chdir(selection.TESTS / "qemu")
    floors = selection.by_floor(["test_cli.py", "tests/unit", "tests/vm/test_mem.py", "test_cli.py", __file__])
    assert {floor: list(map(str, chosen)) for floor, chosen in floors.items()} == {
        "qemu": [str(selection.TESTS / "qemu/test_cli.py")],
        "unit": [str(selection.TESTS / "unit"), __file__],
        "vm": [str(selection.TESTS / "vm/test_mem.py")],
    }
    assert list(selection.by_floor(["../../tests"])) == ["unit", "qemu", "vm"]


def test_a_node_id_is_handed_on_whole():
    node = f"{__file__}::test_a_node_id_is_handed_on_whole[a b]"
    assert [str(one) for one in selection.by_floor([node])["unit"]] == [node]
    made = f"{selection.TESTS}/qemu/test_drivers.py::test_made_at_import"  # only pytest can know
    assert [str(one) for one in selection.by_floor([made])["qemu"]] == [made]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("tests/unit/test_lab_part.py", r"test_lab_part\.py: no such file or folder; like it: tests/unit/.*parts"),
        ("tests/vm/test_lab_parts.py", r"no such file or folder; like it: tests/unit/(\w+/)?test_lab_parts\.py$"),
        ("nothing/at/all", "see the folders tests/unit, tests/qemu, tests/vm"),
        ("uvirtio/errors.py", "not below tests/unit, tests/qemu or tests/vm"),
        ("/etc/passwd", "not below tests/unit"),
        ("tests/conftest.py", "not below tests/unit"),
        ("tests/bodies/balloon_stats.py", r"bodies are run by .*: tools/test tests/qemu/\w+\.py -k balloon$"),
        ("tests/qemu/conftest.py", "a helper of the tests, with no test in it"),
        ("tests/unit::test_x", "is a folder; write FILE::NAME"),
        (f"{__file__}::test_a_node_is_handed_on", "has no test .*; like it: test_a_node_id_is_handed_on_whole"),
    ],
)
def test_a_path_that_names_no_test_is_an_error_with_a_remedy(word, said, capsys):
    with pytest.raises(LabError, match=said) as caught:
        cli_test.main([word])
    assert caught.value.exit_code == 2


def test_the_examples_of_the_help_can_be_run():
    lines = [line for line in cli_test._EXAMPLES.splitlines() if line.startswith("  tools/test")]
    assert len(lines) > 5
    for line in lines:
        words = shlex.split(re.split(r" {2,}", line.strip())[0])[1:]
        cli_test._floors(cli_test.parser().parse_args(words))


def test_a_path_says_its_floor_itself():
    with pytest.raises(LabError, match="leave --unit --vm out") as caught:
        cli_test.main([__file__, "--unit", "--vm"])
    assert caught.value.exit_code == 2
    options = cli_test.parser().parse_args([__file__, "--lint"])
    assert {floor: list(map(str, chosen)) for floor, chosen in cli_test._floors(options).items()} == {
        "unit": [__file__],
        "lint": [],
    }


def test_a_file_of_the_vm_boots_the_machines_that_have_it():
    def booted(*words, only=None, extras=False):
        named = selection.by_floor(words)["vm"]
        chosen, left_out = cli_test._machines("6.12", only, extras=extras, named=named)
        return [machine.name for machine, _ in chosen], [name.split()[1] for name in left_out]

    assert booted("tests/vm/test_uio.py") == (["vfio", "uio"], ["uio-pt", "uio-legacy"])
    assert booted("tests/vm/test_uio.py", extras=True) == (["vfio", "uio", "uio-pt", "uio-legacy"], [])
    assert booted("tests/vm/test_uio.py", only="uio-pt") == (["uio-pt"], [])
    # One that plain machines do not have: it is clear what is wanted.
    assert booted("tests/vm/test_vfio_ways.py", "tests/vm/test_legacy.py") == (
        *(["legacy", "vfio-cdev", "vfio-noiommu"], []),
    )
    with pytest.raises(LabError, match=r"--machine mem has none of .*test_uio"):
        booted("tests/vm/test_uio.py", only="mem")
    with pytest.raises(LabError, match="--machine men: not one of vfio, uio,"):
        booted("tests/vm/test_uio.py", only="men")


def test_a_test_of_the_vm_is_what_pytest_there_is_told():
    file = machines.FOLDER / "test_x.py"
    other = machines.FOLDER / "test_y.py"
    machine = machines.Machine("m", ("6.12",), (), (file, other))
    one = selection.Chosen(file, "::test_a")
    assert selection.of_machine(machine, [selection.Chosen(machines.FOLDER)]) == machine
    assert selection.of_machine(machine, [one]).arguments == (f"{file}::test_a",)
    part = selection.of_machine(machine, [one, selection.Chosen(other), selection.Chosen(file, "::test_b")])
    assert part.arguments == (f"{file}::test_a", f"{file}::test_b", str(other))
    assert selection.of_machine(machine, [selection.Chosen(file)]).files == (file,)
    assert selection.of_machine(machine, [selection.Chosen(machines.FOLDER / "test_z.py")]) is None


# --- other interpreters -------------------------------------------------------------------------------------


def make_python(folder, name, version="3.13.1", implementation="CPython", free=False, code=0):
    """A program that answers as an interpreter does."""
    folder.mkdir(parents=True, exist_ok=True)
    said = [implementation, [int(part) for part in version.split(".")], free, f"{version} (main)"]
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{json.dumps(said)}'\nexit {code}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def interpreters(tmp_path, monkeypatch):
    """A PATH and a home with some; what is there by the ways that find it."""
    shims = tmp_path / "shims"
    shims.mkdir()
    (shims / "python3.14").write_text("#!/bin/sh\necho 'pyenv: not active' >&2\nexit 127\n")
    (shims / "python3.14").chmod(0o755)
    pyenv, uv = tmp_path / ".pyenv/versions", tmp_path / ".local/share/uv/python"
    made = {
        "3.12": make_python(tmp_path / "bin", "python3.12", "3.12.4"),
        "3.9": make_python(tmp_path / "bin", "python3.9", "3.9.2"),
        "pypy": make_python(tmp_path / "bin", "pypy3", "3.11.9", "PyPy"),
        "3.14": make_python(pyenv / "3.14.0/bin", "python3.14", "3.14.0"),
        "3.14.0t": make_python(pyenv / "3.14.0t/bin", "python3.14t", "3.14.0", free=True),
        "3.13": make_python(uv / "cpython-3.13.10-linux/bin", "python3.13", "3.13.10"),
        "3.13.9": make_python(uv / "cpython-3.13.9-linux/bin", "python3.13.9", "3.13.9"),
    }
    # Beside it, under the name of the one that has the lock.
    make_python(pyenv / "3.14.0t/bin", "python3.14", "3.14.0", free=True)
    make_python(uv / "cpython-3.13.9-linux/bin", "python3.13", "3.13.9")
    for name in ("PYENV_ROOT", "UV_PYTHON_INSTALL_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{shims}:{tmp_path}/bin")  # and none of this machine's own
    return made


@pytest.mark.parametrize(
    ("wanted", "which"),
    [
        ("3.12", "3.12"),
        ("python3.12", "3.12"),
        ("3.14", "3.14"),
        ("3.14t", "3.14.0t"),
        ("python3.14t", "3.14.0t"),
        ("3.13", "3.13"),
        ("3.13.9", "3.13.9"),
    ],
)
def test_an_interpreter_is_found_by_its_version(interpreters, wanted, which):
    found = pythons.find(wanted)
    assert found.path == interpreters[which]
    assert str(found).startswith(which)
    assert pythons.find(str(found.path)) == found


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("3.99", r"no python3\.99 in PATH, nor where pyenv and uv keep theirs"),
        ("3.12t", r"no python3\.12t in PATH"),
        ("3.9", r"is CPython 3\.9\.2; CPython 3\.11 or later is needed"),
        ("pypy3", r"is PyPy 3\.11\.9; CPython"),
        ("/bin/true", "no Python that runs there"),
        ("/no/such/python", "no Python that runs there"),
    ],
)
def test_an_interpreter_that_cannot_be_used_is_an_error_that_names_others(interpreters, wanted, said):
    with pytest.raises(LabError, match=said) as caught:
        cli_test.main(["--python", wanted])
    assert caught.value.exit_code == 2
    assert f"3.12.4 ({interpreters['3.12']})" in str(caught.value)
    assert "--python /path/to/python" in str(caught.value)


@pytest.mark.parametrize(
    ("more", "floors"),
    [
        ([], ["unit"]),
        (["--qemu"], ["qemu"]),
        ([__file__], ["unit"]),
        (["--spec", "BAL-R01", "--unit"], ["unit"]),
        (["--vm"], None),
        (["--unit", "--lint"], None),
        (["--all"], None),
    ],
)
def test_another_interpreter_is_for_the_floors_of_this_machine(more, floors):
    options = cli_test.parser().parse_args(["--python", "3.13", *more])
    if floors is None:
        with pytest.raises(LabError, match="--python is for --unit, --qemu") as caught:
            cli_test._floors(options)
        assert caught.value.exit_code == 2
    else:
        assert list(cli_test._floors(options)) == floors


def test_the_whole_battery_is_a_step_of_its_own_for_each_qemu(monkeypatch, noted):
    monkeypatch.setattr(cli_test.qemus, "get", lambda version, accept_expired: version or "own")
    runner = cli_test.Runner()
    for version in cli_test._CONFORM_QEMUS:
        [(_, step)] = cli_test._battery(runner, version)
        step()
        assert noted.pop() == (
            f"conform {version}".rstrip(),
            [str(TOOLS.parent / "tests/qemu/test_conform_whole.py")],
            {"UVIRTIO_CONFORM_WHOLE": "1"},
        )


def test_another_interpreter_has_an_environment_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    built = []
    monkeypatch.setattr(setup, "_build_venv", lambda path, which: (path.mkdir(), built.append(which)))
    monkeypatch.setattr(setup.subprocess, "run", lambda *words, **how: None)
    one = pythons.Interpreter(Path("/a/python"), "CPython", (3, 13, 1), False, "3.13.1 (a)")
    paths = [setup.venv(which) for which in (None, one, replace(one, build="3.13.1 (b)"), one, None)]
    assert len(set(paths)) == 3 and paths[0] == paths[4] and paths[1] == paths[3]
    assert built == [None, one, replace(one, build="3.13.1 (b)")]
    (paths[0] / "bin").mkdir()
    (paths[0] / "bin/uvirtio").touch()
    monkeypatch.setenv("VIRTUAL_ENV", str(paths[0]))  # an active one is for the usual interpreter
    assert setup.venv() == paths[0] and setup.venv(one) == paths[1]


@pytest.mark.parametrize("wheel", [True, False])
def test_an_interpreter_for_which_a_wheel_is_missing_goes_without(wheel, tmp_path, monkeypatch, capsys):
    ran = []

    def run(command, **how):
        ran.append(" ".join(command))
        code = 0 if wheel or "[input]" not in command[-1] else 1
        return subprocess.CompletedProcess(command, code, "", "a line\nERROR: no wheel\n")

    monkeypatch.setattr(setup.subprocess, "run", run)
    setup._build_venv(tmp_path / "v", pythons.Interpreter(Path("/a/py"), "CPython", (3, 15, 0), True, ""))
    assert ran[0] == f"/a/py -m venv {tmp_path}/v"
    assert [command.rpartition("[")[2] for command in ran[1:]] == ["test,tui]", "input]"]
    said = "Python 3.15.0t goes without the extra 'input': ERROR: no wheel"
    assert (said in capsys.readouterr().out) is not wheel


# --- tests of a requirement ---------------------------------------------------------------------------------


@pytest.fixture
def small_table(tmp_path, monkeypatch):
    """A checkout with three requirements: of a unit test, of a body, of none; and one that only the VM proves."""
    for folder in ("unit/room", "qemu", "vm", "bodies"):
        (tmp_path / "tests" / folder).mkdir(parents=True)
    rows = "".join(
        f'{{ id = "A-0{number}", section = "1", level = "MUST", title = "{number}"{more} }},'
        for number, more in enumerate(["", "", ', reason = "never"', ""], 1)
    )
    table = f'[[area]]\nnumber = 1\nname = "x"\ncount = 4\nrequirements = [{rows}]\n'
    (tmp_path / "table.toml").write_text(table)
    marked = "import pytest\n@pytest.mark.spec('{}')\ndef test_a(): pass\n"
    for name, text in {
        "unit/room/test_a.py": marked.format("A-01") + marked.format("A-02"),
        "unit/test_b.py": marked.format("A-01"),
        "qemu/test_cells.py": "from tests.bodies import a",
        "vm/test_cells.py": "from tests.bodies import a",
        "vm/test_own.py": marked.format("A-04"),
        "bodies/a.py": marked.format("A-02"),
    }.items():
        (tmp_path / "tests" / name).write_text(text)
    monkeypatch.setattr(selection, "CHECKOUT", tmp_path)
    monkeypatch.setattr(selection, "TESTS", tmp_path / "tests")
    monkeypatch.setattr(conformance, "TESTS", tmp_path / "tests")
    monkeypatch.setattr(conformance, "TABLE", tmp_path / "table.toml")
    monkeypatch.setattr(conformance, "CHECKOUT", tmp_path)
    return tmp_path / "tests"


@pytest.mark.parametrize(
    ("names", "floors", "expected"),
    [
        (["A-01"], [], {"unit": ["unit/room/test_a.py", "unit/test_b.py"]}),
        (["A-02"], [], {"unit": ["unit/room/test_a.py"], "qemu": ["qemu/test_cells.py"]}),
        (["A-02"], ["vm"], {"vm": ["vm/test_cells.py"]}),
        (["A-02", "A-04"], ["vm"], {"vm": ["vm/test_cells.py", "vm/test_own.py"]}),
        (["A-01", "A-02"], ["qemu"], {"qemu": ["qemu/test_cells.py"]}),
    ],
)
def test_the_files_of_a_requirement(small_table, names, floors, expected):
    found = selection.of_requirements(names, floors)
    shown = {floor: [str(one.path.relative_to(small_table)) for one in chosen] for floor, chosen in found.items()}
    assert shown == expected


@pytest.mark.parametrize(
    ("names", "floors", "said"),
    [
        (["A-4"], [], "A-4: no such requirement in table.toml; like it: A-04"),
        (["A-03"], [], "A-03: no test proves it; A-03: never$"),
        (["A-04"], [], "A-04: proved on another floor; add --vm$"),
        (["A-01"], ["qemu"], "add --unit$"),
    ],
)
def test_a_requirement_without_tests_here_is_an_error_with_a_remedy(small_table, names, floors, said):
    with pytest.raises(LabError, match=said) as caught:
        selection.of_requirements(names, floors)
    assert caught.value.exit_code == 2


def test_pytest_keeps_what_proves_the_requirement(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.spec('A-01', 'A-02')\ndef test_one(): pass\n"
        "@pytest.mark.spec('A-03')\nclass TestTwo:\n"
        "    @pytest.mark.parametrize('x', [1, pytest.param(2, marks=pytest.mark.spec('A-02'))])\n"
        "    def test_two(self, x): pass\n"
        "def test_three(): pass\n"
    )
    runner = Runner(Path(sys.prefix), tmp_path, spec=("A-02", "A-99"))
    command = runner._pytest([str(tmp_path)], tmp_path / "x.xml", tmp_path)
    options = ["-c", f"{TOOLS.parent}/pyproject.toml", "-p", "tests.conftest", "-vv", "-p", "no:randomly"]
    done = subprocess.run([*command, *options], cwd=TOOLS.parent, capture_output=True, text=True, timeout=60)
    ran = re.findall(r"::(\S+) PASSED", done.stdout)
    assert (ran, done.returncode) == (["test_one", "TestTwo::test_two[2]"], 0), done.stdout


def test_when_nothing_matches_nothing_has_passed(tmp_path, capsys):
    outcomes = [Outcome("unit", ok=True, seconds=0.0, note="nothing matches -k")]
    assert cli_test._verdict(outcomes, 0.0, tmp_path, []) == 2
    assert "no test ran: nothing matches" in capsys.readouterr().out
    assert cli_test._verdict([*outcomes, Outcome("qemu", True, 0.0, passed=1)], 0.0, tmp_path, []) == 0
    assert cli_test._verdict([*outcomes, Outcome("qemu", False, 0.0, failed=1)], 0.0, tmp_path, []) == 1


@pytest.mark.parametrize("broken", [False, True])
def test_the_fleet_is_started_once_and_its_results_are_what_is_tested(broken, monkeypatch, noted, tmp_path):
    results = []

    def run(kernel, venv, where, *, accept_expired):
        assert kernel == "a kernel" and accept_expired
        results.append(str(where))
        if broken:
            raise LabError("south does not answer ssh\nand more")
        return fleet.Times(boots=30, play=40)

    monkeypatch.setattr(cli_test.kernels, "get", lambda name, accept_expired: "a kernel")
    monkeypatch.setattr(fleet, "ssh_server", lambda accept_expired: tmp_path)
    monkeypatch.setattr(fleet, "ansible", lambda: Path("/of/ansible"))
    monkeypatch.setattr(cli_test.cli_fleet, "run", run)
    [(name, step)] = cli_test._fleet(Runner(tmp_path, tmp_path), accept_expired=True)
    assert name == "fleet" and not results and not noted  # nothing is started while the steps are collected
    ran = []

    def pytest_of(self, name, arguments, wrapper, *, qemu=None, env=None):
        ran.append((arguments, env))
        return Outcome(name, ok=True, seconds=0.0, passed=1)

    monkeypatch.setattr(Runner, "pytest", pytest_of)
    outcome = step()
    assert outcome.ok is not broken and len(results) == 1
    if broken:
        assert outcome.failed == 1 and outcome.note == "south does not answer ssh" and not ran
    else:
        [(arguments, env)] = ran
        assert all(Path(one).exists() for one in arguments)
        assert env["UVIRTIO_FLEET"] == results[0] and env["PATH"].startswith("/of/ansible:")
        assert outcome.note == "30 s for the boots, 40 s for the playbook"
    assert not Path(results[0]).exists()


@pytest.mark.parametrize("broken", [False, True])
def test_the_plugins_vm_has_its_kernel_before_the_test_which_is_not_skipped(broken, monkeypatch, tmp_path):
    def get(name, *, accept_expired):
        assert name == arches.X86_64.kernel and accept_expired
        if broken:
            raise LabError("no mirror\nand more")

    ran = []

    def pytest_of(self, name, arguments, wrapper, *, env=None):
        ran.append((arguments, env))
        return Outcome(name, ok=True, seconds=0.0, passed=1)

    monkeypatch.setattr(cli_test.kernels, "get", get)
    monkeypatch.setattr(Runner, "pytest", pytest_of)
    [(name, step)] = cli_test._plugin(Runner(tmp_path, tmp_path), accept_expired=True)
    assert name == "plugin" and not ran
    assert step().ok is not broken
    if not broken:
        [([folder, require], env)] = ran
        assert list(Path(folder).glob("test_*.py")) and require == "--uvirtio-require-qemu"
        assert env == {"UVIRTIO_VIRTIO_VM": "1"}
