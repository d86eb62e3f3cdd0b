"""tools/soak --vm: each thing that a death in the VM may leave is seen."""

from __future__ import annotations

import io
import json
import mmap
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.vm import deaths, pattern
from tests.vm.pattern import MIB, Pattern

TOOLS = next(top for top in Path(__file__).resolve().parents if (top / "pyproject.toml").exists()) / "tools"
sys.path.insert(0, str(TOOLS))

from lab import LabError, cli_soak  # noqa: E402
from lab.floors import Outcome, Runner  # noqa: E402

LOG = b"4,1,1,-;an ordinary line\n SUBSYSTEM=none\n"
FAULT = b"3,2,2,-;DMAR: [DMA Write NO_PASID] Request device [03:00.0] fault addr 0x1000\n"
WARNING = b"4,3,3,-;WARNING: CPU: 0 PID: 1 at mm/page_alloc.c:1\n"


# --- memory --------------------------------------------------------------------------------------------------


def test_memory_that_nothing_touches_is_as_filled() -> None:
    with closing(Pattern("mine", 3 * MIB, 1)) as filled:
        assert filled.wrong() == []
    filled.close()
    with closing(Pattern("none", 0, 1)) as filled:
        assert filled.wrong() == []


def test_a_byte_that_was_written_and_a_page_that_was_emptied_are_seen() -> None:
    with closing(Pattern("mine", 3 * MIB, 1)) as filled:
        assert filled._map is not None
        filled._map[MIB + 5000] ^= 1
        filled._map.madvise(mmap.MADV_DONTNEED, 2 * MIB + 8192, 4096)  # as a balloon's host does
        assert filled.wrong() == ["mine: 2 of 768 pages are not as filled, 1 are zeroes"]


# --- a death -------------------------------------------------------------------------------------------------


class Child:
    """A command that lives for so many looks at it."""

    def __init__(self, looks: float, code: int = 0) -> None:
        self._looks, self._code, self.stdout, self.pid = looks, code, io.StringIO("said"), os.getpid()

    def poll(self) -> int | None:
        self._looks -= 1
        return None if self._looks > 0 else self._code

    def wait(self, _timeout: float) -> int:
        return -9

    def send_signal(self, number: int) -> None: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., deaths.Deaths]:
    """Kill a command that is none, three times; what is told of the machine after each death can be chosen."""

    def run(
        name: str = "",
        value: Any = None,
        late: int = 0,
        ends: int = 0,
        seconds: float | None = None,
        **victim: Any,
    ) -> deaths.Deaths:
        told: dict[str, Any] = {"up": False, "code": 0, "huge": 4, "log": LOG}
        lives = [3.0] * (late + 1)

        def log(_fd: int, _length: int) -> bytes:
            record, told["log"] = told["log"], b""
            if not record:
                raise BlockingIOError
            return bytes(record)

        def start(*_words: str) -> Child:
            if lives:  # the first is the one that is left alone
                return Child(lives.pop(), ends if len(lives) < late else 0)
            if name in told:
                told[name] = value
            return Child(1e9)

        def following(*_words: str, timeout: float) -> subprocess.CompletedProcess[str]:
            return subprocess.CompletedProcess([], told["code"], "", "no\nsuch")

        monkeypatch.setattr(deaths, "HELD", MIB)
        monkeypatch.setattr(deaths, "AUTO_ONLINE", tmp_path / "auto")
        (tmp_path / "auto").write_text("offline\n")
        monkeypatch.setattr(deaths, "commands", lambda: SimpleNamespace(start=start, run=following))
        monkeypatch.setattr(deaths, "started", lambda _qmp, _path: told["up"])
        monkeypatch.setattr(deaths, "guardians", lambda _since: [])
        monkeypatch.setattr(deaths, "DROP_CACHES", tmp_path / "drop")
        monkeypatch.setattr(pattern, "free", lambda: 82 * MIB)
        monkeypatch.setattr(Pattern, "of_free_huge_pages", classmethod(lambda cls, *_: cls("huge", 0, 1)))
        monkeypatch.setattr(pattern, "free_huge_pages", lambda: told["huge"])
        witness: Any = SimpleNamespace(execute=lambda *_words, **_more: {"actual": 0})
        machine = deaths.Machine(deaths.Way("made", id, id), {"it": "1:2"}, witness, tmp_path, dict)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(deaths, "open_log", lambda: os.open("/dev/null", os.O_RDONLY))
            patch.setattr(deaths, "read_log", log)
            with closing(deaths.Killing(machine, 1)) as killing:
                return killing.run(deaths.Victim("made", "it", ("do", "ADDRESS"), ("more",), **victim), 3, seconds)

    return run


def test_a_death_that_leaves_nothing(killed: Callable[..., deaths.Deaths]) -> None:
    found = killed()
    assert (found.kills, found.late, found.faults, found.filled) == (3, 0, [], 2 * MIB)


def test_without_time_one_kill_is_left(killed: Callable[..., deaths.Deaths]) -> None:
    assert killed(seconds=0.0).kills == 1, "or nothing at all would be proved"


def test_a_kill_that_comes_late_tells_how_long_the_command_lives(
    killed: Callable[..., deaths.Deaths], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float] = []
    now, lives = [0.0], iter([8.0, *[0.05] * 20])  # at its first look it has ended already, or is alive

    def live(_self: object, _victim: object, child: Child, _seconds: float) -> int | None:
        now[0] += next(lives)
        return None if child._looks > 1e6 else child._code

    def draw(_least: float, most: float) -> float:
        drawn.append(most)
        return most

    monkeypatch.setattr(deaths, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _seconds: None))
    monkeypatch.setattr(deaths.Killing, "_live", live)
    monkeypatch.setattr(deaths.random, "Random", lambda _seed: SimpleNamespace(uniform=draw, randbytes=bytes))
    found = killed(late=1)
    assert (found.late, found.kills, found.faults) == (1, 3, [])
    assert drawn == pytest.approx([8.0, 0.05, 0.05, 0.05])
    lives = iter([8.0, *[0.05] * 20])
    lives = iter([8.0, *[0.05] * 20])
    assert killed(late=1, ends=3).faults == ["kill 0: before it was killed it ended with 3: said"]
    lives = iter([8.0, *[0.05] * 20])
    assert killed(late=10).faults == ["no kill met a living command; 10 came late"], "and proves nothing"


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("up", True, "the device is not reset"),
        ("code", 1, "next start: no such"),
        ("log", FAULT, "the kernel: DMAR: [DMA Write"),
        ("log", WARNING, "the kernel: WARNING: CPU"),
    ],
)
def test_what_a_death_leaves_is_a_fault(
    killed: Callable[..., deaths.Deaths], name: str, value: Any, fault: str
) -> None:
    assert killed(name, value).faults[0].startswith(f"kill 1: {fault}")


def test_what_is_wrong_with_the_memory_or_for_the_workload_is_a_fault(
    killed: Callable[..., deaths.Deaths], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert killed(after=lambda _machine: []).faults == []
    looks = iter([[], ["a torn sector"]])
    assert killed(after=lambda _machine: next(looks, [])).faults[:1] == ["kill 1: a torn sector"]
    monkeypatch.setattr(Pattern, "wrong", lambda _self: ["a page"])
    assert killed().faults[:2] == ["kill 1: a page", "kill 1: a page"]  # held from the beginning, and freed


# --- the tool ------------------------------------------------------------------------------------------------


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[tuple[Any, dict[str, str]]]]]:
    """``tools/soak --vm``, on VMs that leave a report and are none; what each was told."""

    def run(
        *words: str, faults: Sequence[str] = (), kills: int = 2, silent: str = "", ended: str = ""
    ) -> tuple[int, list[tuple[Any, dict[str, str]]]]:
        booted: list[tuple[Any, dict[str, str]]] = []
        monkeypatch.setattr(os, "environ", {})
        monkeypatch.setattr(cli_soak.setup, "packages", lambda _packages: None)
        monkeypatch.setattr(cli_soak.setup, "venv", lambda: Path("/venv"))

        def floor(runner: Runner, chosen: Any) -> Iterator[tuple[str, Callable[[], Outcome]]]:
            ((machine, version),) = chosen
            name = f"vm {machine.name} {version}"
            if machine.name == ended:
                raise LabError("a download\nfailed")
            told = deaths.Deaths(machine.name, "plug", kills=kills, filled=64 * MIB, faults=list(faults))
            report = ET.Element("testsuite")
            ET.SubElement(report, "property", name="deaths", value=json.dumps(told.as_dict()))

            def step() -> Outcome:
                booted.append((machine, dict(os.environ)))
                if machine.name == silent:
                    return Outcome(name, ok=False, seconds=0.0, failed=1, note="pytest ended with 1")
                ET.ElementTree(report).write(runner.reports / f"{name.replace(' ', '-')}.xml")
                return Outcome(name, ok=not faults, seconds=0.0, failed=len(faults))

            yield name, step

        compiled: list[str] = []
        monkeypatch.setattr(Runner, "compile", lambda _self, files, _wrapper: compiled.extend(files))
        monkeypatch.setattr(cli_soak.cli_test, "vm_floor", floor)
        code = cli_soak.main(list(words))
        assert [Path(one).name for one in compiled] == ["test_deaths.py"], (
            "or each VM does it again, on an emulated CPU"
        )
        return code, booted

    return run


def test_each_way_is_a_machine_that_is_told_how_often_and_how_long(
    tool: Callable[..., Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, booted = tool("--vm", "--kills", "7", "--seed", "3", "--within", "60", "--json", str(tmp_path / "it"))
    assert code == 0
    assert [machine.name for machine, _ in booted] == ["deaths-vfio", "deaths-uio", "deaths-mmio", "deaths-vdpa"]
    _, env = booted[0]
    assert (env["UVIRTIO_KILLS"], env["UVIRTIO_KILLS_SEED"]) == ("7", "3") and float(env["UVIRTIO_KILLS_LOOP"]) > 0
    assert 800 < float(env["UVIRTIO_KILLS_SECONDS"]) < 900
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5 and printed[0].startswith("ok   deaths-vfio plug       2 killed (0 came late)")
    assert printed[-1].startswith("PASS") and "; 8 killed" in printed[-1]
    assert len(json.loads((tmp_path / "it").read_text())["kills"]) == 4


def test_a_fault_of_a_way_ends_the_tool_with_1(
    tool: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    code, booted = tool("--vm", "uio", faults=["kill 1: a page"])
    assert code == 1 and "UVIRTIO_KILLS_SECONDS" not in booted[0][1]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("FAIL deaths-uio") and printed[0].endswith("; kill 1: a page")
    assert printed[-1].startswith("FAIL: vm deaths-uio 6.12: 1 failed")


def test_a_machine_that_leaves_no_report_is_told_and_ends_no_other(
    tool: Callable[..., Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    figures = tmp_path / "it"
    code, booted = tool("--vm", "--json", str(figures), silent="deaths-vfio", ended="deaths-mmio")
    assert code == 1 and [machine.name for machine, _ in booted] == ["deaths-vfio", "deaths-uio", "deaths-vdpa"]
    wrong = [
        "vm deaths-vfio 6.12: pytest ended with 1, and it left no report",
        "deaths-mmio: a download",
    ]
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith(f"FAIL: {'; '.join(wrong)}; 4 killed")
    document = json.loads(figures.read_text())
    assert (len(document["kills"]), document["broken"]) == (2, wrong)


def test_where_nothing_is_killed_nothing_is_proved(
    tool: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = tool("--vm", "uio", kills=0)
    assert code == 1 and capsys.readouterr().out.splitlines()[-1].startswith("FAIL: nothing was killed; 0 killed")


@pytest.mark.parametrize("words", [("--kills", "0"), ("--within", "0"), ("--within", "nan")])
def test_numbers_that_cannot_be_are_refused(tool: Callable[..., Any], words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        tool("--vm", "uio", *words)
    assert ended.value.code == 2
