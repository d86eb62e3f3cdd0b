"""The pytest plugin: fixtures close what they opened, failed tests leave traces, marks say what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support import forked
from uvirtio import scripted
from uvirtio.evidence import files

CHECKOUT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").exists())

BEGIN = "import pytest\nimport uvirtio\nfrom uvirtio import scripted\n\n"


def run(folder: Path, test: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one test file with the plugin and no other, in a folder of its own."""
    (folder / "test_it.py").write_text(BEGIN + test)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return forked.pytest(
        ["-q", "-ra", "-p", "uvirtio.pytest_plugin", "-p", "no:cacheprovider", "--strict-markers",
         "-c", os.devnull, "--rootdir", ".", "--basetemp", "tmp", *arguments],
        folder,
        {**kept, "PYTHONPATH": str(CHECKOUT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environment},
    )  # fmt: skip


def kept(folder: Path) -> dict[str, str]:
    """The artefacts below a folder, by their path in it."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".txt", ".json"))
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def test_pytest_finds_it_and_nothing_else_imports_pytest() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"uvirtio": "uvirtio.pytest_plugin"}
    assert not any("pytest" in one for one in project["dependencies"])
    with_it = {path for path in (CHECKOUT / "uvirtio").rglob("*.py") if "import pytest\n" in path.read_text()}
    assert with_it == {CHECKOUT / f"uvirtio/pytest_plugin/{name}.py" for name in ("__init__", "rows")}


def test_a_run_that_uses_no_fixture_loads_no_device() -> None:
    code = "import uvirtio.pytest_plugin, sys; print(*sorted(n for n in sys.modules if n.startswith('uvirtio')))"
    there = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run([sys.executable, "-c", code], env=there, capture_output=True, text=True)
    assert done.stdout.split() == ["uvirtio", "uvirtio.errors", "uvirtio.pytest_plugin", "uvirtio.typed"]


FAILING = """
@pytest.mark.parametrize("length", [8, 9])
def test_rng(virtio_device, scripted_device, length):
    device = virtio_device(scripted_device("rng"))
    with uvirtio.Rng(device) as rng:
        assert len(rng.read(8)) == length

def test_without_a_device():
    assert False
"""


def test_a_failed_test_leaves_its_trace_and_one_that_passes_leaves_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, FAILING, "--uvirtio-artifacts", "out")
    assert "2 failed, 1 passed" in done.stdout
    found = kept(tmp_path / "out")
    folder = "test_it.py-test_rng[9]"
    assert list(found) == [f"{folder}/{name}" for name in ("devices.txt", "dump.json", "trace.txt")]
    assert "scripted:rng" in found["test_it.py-test_rng[9]/devices.txt"]
    trace = found["test_it.py-test_rng[9]/trace.txt"]
    assert "kick" in trace
    assert all("scripted:rng: " in line for line in trace.splitlines())
    assert "requestq (queue 0): no buffer is out; 1 kicks" in found[f"{folder}/devices.txt"]
    # The dump has the queues as the end of the with block found them, and the trace has no access of the dump's.
    [record] = files.load(str(tmp_path / f"out/{folder}/dump.json")).devices
    assert (record["type"], record["status"]["value"], record["books"]["requestq completions"]) == ("rng", 0, 1)
    assert record["queues"][0]["ring"]["published"] == 1 and "was left" in record["notes"][0]
    assert record["config_space"] is not None and "cfg_type" not in trace.partition("kick")[2]
    assert str(tmp_path / "out/test_it.py-test_rng[9]") in done.stdout
    # It is mended: the next run takes the trace away.
    done = run(tmp_path, FAILING.replace("9", "8").replace("False", "True"), "--uvirtio-artifacts", "out")
    assert done.returncode == 0, done.stdout
    done = run(tmp_path, FAILING.replace("== length", "== length or length"), "--uvirtio-artifacts", "out")
    assert kept(tmp_path / "out") == {}


def test_without_the_option_the_trace_is_in_the_temporary_directory(tmp_path: Path) -> None:
    run(tmp_path, FAILING)
    assert [Path(name).name for name in kept(tmp_path / "tmp")] == ["devices.txt", "dump.json", "trace.txt"]


def test_every_test_has_a_folder_of_its_own_whatever_its_parameters(tmp_path: Path) -> None:
    test = """
@pytest.mark.parametrize("text", ["a/b", "a:b", "a b", "x" * 300, "x" * 301, "..", "é"])
def test_rng(virtio_device, text):
    virtio_device("scripted:rng")
    assert False
"""
    done = run(tmp_path, test, "--uvirtio-artifacts", "out")
    assert "7 failed" in done.stdout
    assert len(list((tmp_path / "out").iterdir())) == 7
    assert len(kept(tmp_path / "out")) == 21


def test_a_device_that_does_not_answer_is_dumped_as_far_as_it_goes(tmp_path: Path) -> None:
    test = """
from uvirtio.errors import DeviceGone, DeviceTimeout

def test_two(virtio_device, scripted_device):
    gone, good = scripted_device("rng", check=False), scripted_device("rng,packed")
    first, second = virtio_device(gone), virtio_device(good)
    def stuck():
        asked.append(1)
        raise DeviceTimeout("QEMU does not answer")
    asked = []
    uvirtio.Rng(first), uvirtio.Rng(second)
    first.transport.status = stuck
    first.transport.device_features = stuck
    try:
        assert not "what the test is about"
    finally:
        import atexit, pathlib
        atexit.register(lambda: pathlib.Path("asked").write_text(str(len(asked))))

def test_recorded(virtio_device, tmp_path):
    with uvirtio.Rng(virtio_device("scripted:rng", record=tmp_path / "it.jsonl")):
        assert not "what the test is about"
"""
    done = run(tmp_path, test, "--uvirtio-artifacts", "out")
    assert "2 failed" in done.stdout
    first, second = files.load(str(tmp_path / "out/test_it.py-test_two/dump.json")).devices
    assert {entry["what"]: entry["why"] for entry in first["absent"]}["features"] == "QEMU does not answer"
    assert (tmp_path / "asked").read_text() == "2", (
        "the dump asks once, the reset once: each question would wait for a time-out"
    )
    assert first["config_space"] is not None and second["queues"][0]["ring"]["format"] == "packed"
    assert "test_it.py-test_recorded/dump.json" not in kept(tmp_path / "out"), (
        "a record has what the test did alone"
    )


XDIST = """
import pathlib, time

@pytest.mark.parametrize("number", range(6))
def test_rng(virtio_device, number, worker_id):
    with uvirtio.Rng(virtio_device("scripted:rng")) as rng:
        data = rng.read(8)
        pathlib.Path(f"ran-{number}").write_text(worker_id)
        while len(list(pathlib.Path().glob("ran-*"))) < 2:
            time.sleep(0.01)  # the other worker is at it: both have a device at the same time
        assert number % 3 or len(data) == 9

def test_obedience(scripted_device, virtio_device):
    virtio_device(scripted_device("rng")).transport.set_status(4)
"""


@pytest.mark.parametrize("given", [True, False])
def test_two_workers_of_xdist_keep_the_artefacts_of_each_failed_test(tmp_path: Path, given: bool) -> None:
    where = ["--uvirtio-artifacts", "out"] if given else []
    done = run(tmp_path, XDIST, "-p", "xdist", "-n", "2", *where)
    assert "2 failed, 5 passed, 1 error" in done.stdout, done.stdout
    assert {path.read_text() for path in tmp_path.glob("ran-*")} == {"gw0", "gw1"}
    folders = {path.parent for path in (tmp_path / ("out" if given else "tmp")).rglob("dump.json")}
    assert {folder.name for folder in folders} == {
        "test_it.py-test_rng[0]", "test_it.py-test_rng[3]", "test_it.py-test_obedience",
    }  # fmt: skip
    for folder in folders:
        assert str(folder) in done.stdout, "the report names it, whichever worker ran the test"
        assert len(kept(folder)) == 3 and len(files.load(str(folder / "dump.json")).devices) == 1


def test_a_trace_of_the_callers_own_is_called_too(tmp_path: Path) -> None:
    test = """
def test_rng(virtio_device):
    lines, others = [], []
    virtio_device("scripted:rng", trace=lines.append)
    virtio_device("scripted:blk", options=uvirtio.OpenOptions(trace=others.append))
    assert lines and others
    assert not any("scripted" in line for line in lines)
"""
    done = run(tmp_path, test)
    assert done.returncode == 0, done.stdout


def test_what_a_test_leaves_open_is_closed(tmp_path: Path) -> None:
    test = """
made = []

def test_first(virtio_device, scripted_device):
    made.append(scripted_device("rng"))
    uvirtio.Rng(virtio_device(made[0])).read(8)
    assert not made[0].closed

def test_second():
    made[0].assert_left()
"""
    assert "2 passed" in run(tmp_path, test).stdout


DISOBEDIENT = """
def test_a_driver_that_skips_a_step(virtio_device, scripted_device):
    device = virtio_device(scripted_device(scripted.Rng(), check={check}))
    device.transport.set_status(4)  # DRIVER_OK before all else
"""


def test_a_driver_that_breaks_the_standard_fails_the_test(tmp_path: Path) -> None:
    done = run(tmp_path, DISOBEDIENT.format(check=True), "--uvirtio-artifacts", "out")
    assert "1 passed, 1 error" in done.stdout
    about = kept(tmp_path / "out")["test_it.py-test_a_driver_that_skips_a_step/devices.txt"]
    assert "the driver broke a rule" in about
    [record] = files.load(str(tmp_path / "out/test_it.py-test_a_driver_that_skips_a_step/dump.json")).devices
    assert record["status"]["names"] == ["DRIVER_OK"], "it was made before the device was closed"
    assert "1 passed" in run(tmp_path, DISOBEDIENT.format(check=False)).stdout.splitlines()[-1]


@pytest.mark.parametrize("type_name", ["balloon", "blk", "input", "mem", "net", "rng", "scsi"])
def test_our_drivers_keep_to_the_standard_on_every_hostile_device(type_name: str, tmp_path: Path) -> None:
    test = f"""
@pytest.mark.parametrize("case", scripted.hostile_cases({type_name!r}))
def test_it(hostile_device, case):
    try:
        device = hostile_device(case, timeout=0.05)
        with uvirtio.{type_name.capitalize()}(device) as driver:
            if {type_name!r} == "rng":
                driver.read(8)
            elif {type_name!r} == "blk":
                driver.read(0, 1)
            elif {type_name!r} == "input":
                driver.read_frame(timeout=0.01)
    except uvirtio.UvirtioError as error:
        assert error.code
"""
    done = run(tmp_path, test)
    assert done.returncode == 0, done.stdout[-4000:]
    assert f"{len(scripted.hostile_cases(type_name))} passed" in done.stdout


def test_an_address_with_faults_takes_no_keywords(tmp_path: Path) -> None:
    test = 'def test_it(scripted_device):\n    scripted_device("rng", silent=True)\n'
    done = run(tmp_path, test)
    assert "1 failed" in done.stdout
    assert "rng,SWITCH" in done.stdout


# --- the rows of a device ---------------------------------------------------------------------------------------

LIAR = "scripted:rng,used-len=+1"
ASKED = "D-STAT-05 or D-STAT-06 or D-USED-04 or D-COM-13"
ELSEWHERE = "def test_elsewhere():\n    assert not 'collected'\n"

KNOWN = """
import sys
import uvirtio.conform
from uvirtio.conform.quirks import Quirk

quirk = Quirk(("D-USED-04", "D-STAT-05"), "it", "==1", "fail", "as before", "observed", "none")
sys.modules["uvirtio.conform.run"].quirks_of = lambda report, quirks: dict.fromkeys(quirk.rows, quirk)
"""


def test_each_row_of_a_device_is_a_test(tmp_path: Path) -> None:
    done = run(tmp_path, ELSEWHERE, "-k", ASKED, "--uvirtio-device", LIAR, "--junitxml", "it.xml")
    assert "1 failed, 2 passed, 1 skipped, " in done.stdout, "and no other test, where no path is given"
    assert f"FAILED {LIAR}::D-USED-04" in done.stdout and "RING_RESET is not offered" in done.stdout
    assert "virtio 1.4, 2.7.8.2, DESC: len never exceeds the writable bytes that were posted." in done.stdout
    assert "seen:     " in done.stdout and "uvirtio log" in done.stdout and "Traceback" not in done.stdout
    assert done.returncode == 1
    assert '<property name="uvirtio_verdict" value="fail" />' in (tmp_path / "it.xml").read_text()


def test_a_known_violation_is_expected_and_one_that_is_gone_is_told(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(KNOWN)
    asked = f"{ASKED} or test_elsewhere"
    given = ["-k", asked, "--uvirtio-device", "scripted:blk", "--uvirtio-device", LIAR, "test_it.py"]
    done = run(tmp_path, ELSEWHERE.replace("not ", ""), *given)
    assert "3 passed, 2 skipped, " in done.stdout and ", 1 xfailed, 3 xpassed" in done.stdout, done.stdout
    assert f"XFAIL {LIAR}::D-USED-04 - known: " in done.stdout
    assert f"XPASS {LIAR}::D-STAT-05" in done.stdout and "known was: as before" in done.stdout
    assert done.returncode == 0


def test_a_device_that_is_not_there_is_an_error_before_any_test(tmp_path: Path) -> None:
    done = run(tmp_path, ELSEWHERE, "--uvirtio-device", "scripted:toaster", "--uvirtio-device", LIAR)
    assert "ERROR scripted:toaster" in done.stdout and "there is no scripted toaster" in done.stdout
    assert done.returncode == 2 and "passed" not in done.stdout


# --- what is missing --------------------------------------------------------------------------------------------

NEEDING = """
@pytest.mark.needs_qemu
def test_marked():
    pass

@pytest.mark.needs_qemu("virt")
def test_other_machine():
    pass

@pytest.mark.qemu_since(8, 1)
def test_newer():
    pass

@pytest.mark.qemu_since(7, 2)
def test_as_old():
    pass

def test_device(virtio_device):
    virtio_device("virtio-rng-pci")

def test_machine(virtio_machine):
    virtio_machine("virtio-rng-device", machine="microvm")
"""


def test_without_qemu_tests_are_skipped_and_say_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    done = run(tmp_path, NEEDING, PATH=str(tmp_path / "bin"))
    assert "6 skipped" in done.stdout
    assert "apt-get install qemu-system-x86" in done.stdout
    assert "apt-get install qemu-system-arm" in done.stdout


def test_where_qemu_is_required_they_fail(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    done = run(tmp_path, NEEDING, "--uvirtio-require-qemu", PATH=str(tmp_path / "bin"))
    assert "2 failed, 4 errors" in done.stdout
    assert "skipped" not in done.stdout


def test_an_older_qemu_is_told_with_both_versions(tmp_path: Path) -> None:
    program = tmp_path / "bin/qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'QEMU emulator version 7.2.22 (a distribution 1:7.2)'\n")
    program.chmod(0o755)
    done = run(tmp_path, NEEDING, "-k", "newer or as_old or marked", PATH=str(program.parent))
    assert "2 passed, 1 skipped" in done.stdout
    assert f"needs QEMU 8.1 or later: {program} is 7.2.22" in done.stdout


@pytest.mark.parametrize(
    ("mark", "told"),
    [
        ("qemu_since", "the mark qemu_since has other arguments"),
        ("qemu_since('8.1')", "8.1"),
        ("needs_qemu('vax')", "no machine 'vax'"),
    ],
)
def test_a_mark_that_makes_no_sense_fails(tmp_path: Path, mark: str, told: str) -> None:
    done = run(tmp_path, f"@pytest.mark.{mark}\ndef test_it():\n    pass\n")
    assert "1 error" in done.stdout
    assert told in done.stdout
    assert "INTERNALERROR" not in done.stdout
