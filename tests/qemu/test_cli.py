"""The command itself, as a process, on QEMU's device models: exit codes, output, and what is left behind."""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from lab import commands

LIMIT = 60
"""Seconds for one command, start of QEMU included, on a busy machine."""

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def _signals_as_in_a_terminal() -> None:
    # A test run in the background of a shell has SIGINT ignored, and a child would inherit that.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


@functools.cache
def _forking(pid: int) -> commands.Commands:
    """What forks the commands of this process, and has loaded them: most of a short command is imports."""
    made = commands.Commands.spawn()
    atexit.register(made.close)
    return made


class Command:
    """A running ``uvirtio`` with its output as lines.

    ``program``: it is started as the program that it is, not forked from a process that has loaded it: for what
    an interpreter does at its end.
    """

    def __init__(self, *argv: str, program: bool = False) -> None:
        self.process: commands.Command | subprocess.Popen[str]
        if not program:
            started = _forking(os.getpid()).start(*argv, merged=False, env=os.environ, cwd=str(Path.cwd()))
            self.process = started
            return
        self.process = subprocess.Popen(
            [sys.executable, "-m", "uvirtio", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_signals_as_in_a_terminal,
        )

    def line(self) -> str:
        """The next line of its output; empty at the end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def event(self, *names: str) -> dict[str, Any]:
        """The next event of one of these names."""
        while text := self.line():
            made = json.loads(text)
            if made.get("event") in names:
                return dict(made)
        raise AssertionError(f"it ended without {names}: {self.process.communicate(timeout=LIMIT)}")

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=LIMIT)
        assert "Traceback" not in err
        assert self.process.returncode is not None
        return self.process.returncode, out, err

    def qemus(self) -> list[int]:
        """The QEMU processes that it has started."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        found = []
        for task in tasks.iterdir():
            for word in (task / "children").read_text().split():
                if Path(f"/proc/{word}/comm").read_text().startswith("qemu"):
                    found.append(int(word))
        return found

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=LIMIT)


@pytest.fixture
def start() -> Iterator[Callable[..., Command]]:
    made: list[Command] = []

    def begin(*argv: str, program: bool = False) -> Command:
        made.append(Command(*argv, program=program))
        return made[-1]

    yield begin
    for one in made:
        one.kill()


@pytest.fixture
def uvirtio(start: Callable[..., Command]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command to its end: exit code, stdout, stderr."""

    def run(*argv: str) -> tuple[int, str, str]:
        return start(*argv).end()

    return run


def gone(pid: int) -> bool:
    """Whether a process is gone within a while (a zombie is)."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


class Witness:
    """QMP, from a process that has nothing to do with the command under test."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(LIMIT)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rw", encoding="utf-8")
        self._file.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            made = json.loads(self._file.readline())
            if "error" in made:
                raise AssertionError(f"{command}: {made['error']}")
            if "return" in made:
                return made["return"]

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Callable[[], Witness]]:
    made: list[Witness] = []

    def connect() -> Witness:
        made.append(Witness(tmp_path / "qmp"))
        return made[-1]

    yield connect
    for one in made:
        one.close()


# --- diag and reset -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "qemu:virtio-rng-pci",
        "qemu:virtio-balloon-pci",
        "qemu:pc/virtio-keyboard-pci",
        "qemu:virtio-mouse-pci",
        "qemu:microvm/virtio-tablet-device",
        pytest.param("qemu:virtio-multitouch-pci", marks=pytest.mark.qemu_since(8, 1)),
        "qemu:virtio-net-pci",
        "qemu:virtio-serial-pci",
    ],
)
def test_diag(uvirtio: Callable[..., tuple[int, str, str]], address: str) -> None:
    code, out, err = uvirtio("diag", address, "--json")
    made = json.loads(out)
    assert (code, err) == (0, "")
    assert made["command"] == "diag"
    assert made["address"] == address
    assert made["verdict"] in ("pass", "warn")
    steps = {step["name"]: step for step in made["steps"]}
    for step in steps.values():
        assert set(step) == {"name", "verdict", "spec", "took_s", "detail", "hint", "cause", "data"}
    assert steps["driver_ok"]["verdict"] == "pass"
    assert ("bus master off" in steps["leave"]["detail"]) is not address.endswith("-device")
    assert steps["data path"]["verdict"] == "pass"


def test_diag_as_text_is_numbered_and_ends_with_the_verdict(uvirtio: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = uvirtio("diag", "qemu:virtio-rng-pci")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    numbers = [line.split("/")[0].strip() for line in lines if "/" in line.split("  ")[0] or "/16" in line]
    assert numbers == [str(number) for number in range(1, 17)]
    assert lines[-1] == "verdict: pass (rng at qemu:virtio-rng-pci)"


def test_diag_of_a_failing_device_is_1(uvirtio: Callable[..., tuple[int, str, str]]) -> None:
    # An entropy device that gives so many bytes in so long a time, and owes more.
    starved = "qemu:virtio-rng-pci,max-bytes=1,period=60000"
    code, out, _ = uvirtio("diag", starved, "--timeout", "1", "--json")
    made = json.loads(out)
    steps = {step["name"]: step["verdict"] for step in made["steps"]}
    assert (code, made["verdict"]) == (1, "fail")
    assert (steps["discover"], steps["driver_ok"], steps["data path"]) == ("pass", "pass", "fail")
    assert made["error"]["code"] == "UV-DEV-TIMEOUT"


def test_diag_as_text_says_once_why_steps_were_skipped(uvirtio: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = uvirtio("diag", "qemu:virtio-rng-pci,max-bytes=1,period=60000", "--timeout", "1")
    assert (code, err) == (1, "")
    (at,) = [number for number, line in enumerate(out.splitlines()) if "skip" in line]
    assert " ".join(out.splitlines()[at].split()) == "13/16 skip interrupt to step 14, configuration change"
    assert out.splitlines()[at + 1].strip() == "an earlier step failed"
    assert "15/16" in out and "cause: requestq: the device was kicked and has not taken the buffer" in out
    assert out.endswith(" (rng at qemu:virtio-rng-pci,max-bytes=1,period=60000)\n")


@pytest.mark.parametrize("mode", ["msix-per-queue", "msix-shared", "intx", "polling"])
def test_the_kind_of_interrupt_can_be_chosen(uvirtio: Callable[..., tuple[int, str, str]], mode: str) -> None:
    code, out, _ = uvirtio("diag", "qemu:virtio-rng-pci", "--interrupts", mode, "--json")
    vectors = next(step for step in json.loads(out)["steps"] if step["name"] == "vectors")
    assert code == 0
    assert vectors["detail"].startswith(mode)


@pytest.mark.parametrize(("device", "code"), [("virtio-rng-pci,packed=on", 0), ("virtio-rng-pci", 1)])
def test_a_ring_that_was_asked_for_is_diagnosed_or_missed(
    uvirtio: Callable[..., tuple[int, str, str]], device: str, code: int
) -> None:
    found, out, _ = uvirtio("diag", f"qemu:{device}", "--ring", "packed", "--json")
    features = next(step for step in json.loads(out)["steps"] if step["name"] == "features")
    assert (found, features["verdict"]) == (code, "fail" if code else "pass")
    assert "RING_PACKED" in (json.loads(out)["error"]["message"] if code else features["detail"])


@pytest.mark.spec("PCI-LEG-03", "PCI-LEG-04")
def test_the_interface_that_is_taken(uvirtio: Callable[..., tuple[int, str, str]]) -> None:
    old, new = "legacy interface", "modern interface"
    for words, interface in (
        (["qemu:virtio-rng-pci"], new),
        (["qemu:virtio-rng-pci", "--force-legacy"], old),
        (["qemu:pc/virtio-balloon-pci,disable-modern=on"], old),
    ):
        code, out, err = uvirtio("diag", *words, "--json")
        assert (code, err) == (0, "")
        steps = {step["name"]: step for step in json.loads(out)["steps"]}
        assert interface in steps["capabilities"]["detail"]
        assert steps["features_ok"]["verdict"] == ("skip" if interface == old else "pass")
    code, out, err = uvirtio(
        "--force-legacy", "rng", "read", "qemu:virtio-rng-pci,disable-legacy=on", "8", "--json"
    )
    assert code == 4
    assert json.loads(out)["error"]["code"] == "UV-ENV-NOT-SUPPORTED"
    assert "--force-legacy" in json.loads(out)["error"]["remedy"]


def test_reset(uvirtio: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = uvirtio("reset", "qemu:virtio-rng-pci", "--json")
    made = json.loads(out)
    assert (code, made["status_after"], made["function_reset"]) == (0, 0, False)


def test_the_trace_shows_registers_and_kicks(uvirtio: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = uvirtio("-v", "rng", "read", "qemu:virtio-rng-pci", "8", "--hex")
    assert code == 0
    assert len(bytes.fromhex(out)) == 8
    lines = [re.fullmatch(r"trace: (\d+\.\d{6}) (.+)", line) for line in err.splitlines()]
    assert all(lines), err
    times = [float(line[1]) for line in lines if line]
    assert times == sorted(times)
    said = [line[2] for line in lines if line]
    assert "common+0x14 device_status write8 <- 0xf (ACKNOWLEDGE|DRIVER|DRIVER_OK|FEATURES_OK)" in said
    # What the back end does in configuration space is told too: its bus master bit, and MSI-X.
    assert "pci+0x04 command write16 <- 0x407 (IO|MEMORY|MASTER|INTX_DISABLE)" in said
    assert any(line.endswith("msix.control write16 <- 0x8000 (ENABLE)") for line in said)
    assert any(line.startswith("kick queue 0: BAR 4+0x3000 eventfd <- 0x0") for line in said)


# --- rng ----------------------------------------------------------------------------------------------------


def test_rng_as_dump_hex_json_and_file(uvirtio: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    device = "qemu:virtio-rng-pci"
    code, out, _ = uvirtio("rng", "read", device, "40")
    assert code == 0
    assert [line[:8] for line in out.splitlines()] == ["00000000", "00000010", "00000020"]
    code, out, _ = uvirtio("rng", "read", device, "1K", "--json")
    made = json.loads(out)
    assert (code, made["bytes"], len(bytes.fromhex(made["hex"]))) == (0, 1024, 1024)
    code, out, _ = uvirtio("rng", "read", device, "100K", "-o", str(tmp_path / "bytes"))
    assert (code, out) == (0, "")
    assert (tmp_path / "bytes").stat().st_size == 100 << 10
    assert len(set((tmp_path / "bytes").read_bytes())) == 256
    code, _, err = uvirtio("rng", "read", device, "1", "-o", str(tmp_path / "no" / "bytes"))
    assert (code, err.startswith("uvirtio: UV-OPERATION: ")) == (1, True)


def test_rng_raw_into_a_reader_that_leaves(start: Callable[..., Command]) -> None:
    command = start("rng", "read", "qemu:virtio-rng-pci", "1G", "--hex", program=True)
    assert command.process.stdout is not None
    assert len(command.process.stdout.read(100)) == 100
    qemus = command.qemus()
    assert len(qemus) == 1
    command.process.stdout.close()
    command.process.stdout = None
    assert command.process.wait(LIMIT) == 141
    assert command.process.stderr is not None
    assert command.process.stderr.read() == ""
    assert gone(qemus[0])


@pytest.mark.parametrize(
    "argv",
    [
        "diag qemu:virtio-rng-pci",
        "diag qemu:virtio-rng-pci --json",
        "rng read qemu:virtio-rng-pci 16",
        "rng read qemu:virtio-rng-pci 16 --raw",
        "balloon inflate qemu:virtio-balloon-pci 1M --hold 0",
    ],
)
@pytest.mark.parametrize("where", ["/dev/full", "&-"], ids=["full", "closed"])
def test_output_that_nothing_takes(argv: str, where: str) -> None:
    # Buffered, as users have it; the interpreter's own exit code for a failed last flush would be 120.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = ["sh", "-c", f'"$@" >{where}', "sh", sys.executable, "-m", "uvirtio", *argv.split()]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env, timeout=LIMIT
    )
    assert done.returncode == 1
    assert done.stderr.startswith("uvirtio: UV-OPERATION: the output cannot be written")
    assert "UV-BUG" not in done.stderr and "Exception ignored" not in done.stderr


def test_bytes_into_a_file_need_no_stdout(tmp_path: Path) -> None:
    argv = ["rng", "read", "qemu:virtio-rng-pci", "16", "-o", str(tmp_path / "bytes")]
    command = ["sh", "-c", '"$@" >&-', "sh", sys.executable, "-m", "uvirtio", *argv]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, timeout=LIMIT).returncode == 0
    assert (tmp_path / "bytes").stat().st_size == 16


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_nobody_reads(start: Callable[..., Command], number: int) -> None:
    command = start("rng", "read", "qemu:virtio-rng-pci", "1G", "--hex", program=True)
    assert command.process.stdout is not None
    assert command.process.stdout.read(1)
    (qemu,) = command.qemus()
    command.process.send_signal(number)
    # Its output is a full pipe by now, and stays one.
    assert command.process.wait(LIMIT) == 128 + number
    assert gone(qemu)


# --- balloon ------------------------------------------------------------------------------------------------


def test_balloon_status(uvirtio: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = uvirtio("balloon", "status", "qemu:virtio-balloon-pci", "--json")
    made = json.loads(out)
    assert (code, made["num_pages"], made["actual"]) == (0, 0, 0)
    assert "VERSION_1" in made["features_names"]
    assert set(made["features_names"]) <= set(made["offered_names"])
    assert made["interrupts"] in ("intx", "msix-shared")  # QEMU 7.2's has no vectors, 10.0's not for every queue
    assert "qemu" in made["backend"]


def test_inflate_holds_and_gives_back(
    start: Callable[..., Command], witness: Callable[[], Witness], tmp_path: Path
) -> None:
    command = start("--json", "balloon", "inflate", f"qemu:q35,qmp={tmp_path / 'qmp'}/virtio-balloon-pci", "64M")
    held = command.event("holding")
    assert (held["pages"], held["bytes"]) == (16384, 64 << 20)
    qemu = witness()
    assert qemu.execute("query-balloon")["actual"] == (512 - 64) << 20
    command.process.send_signal(signal.SIGTERM)
    assert command.event("leaving")["reason"] == "SIGTERM"
    code, _, err = command.end()
    assert (code, err) == (143, "")


def test_inflate_with_hold_ends_by_itself(uvirtio: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = uvirtio("balloon", "inflate", "qemu:virtio-balloon-pci", "25%", "--hold", "0.1", "--json")
    lines = [json.loads(text) for text in out.splitlines()]
    assert (code, err) == (0, "")
    assert all(one["schema"] == "uvirtio/1" and one["command"] == "balloon inflate" for one in lines)
    events = [one["event"] for one in lines]
    assert events[-3:] == ["holding", "leaving", "done"]
    assert set(events[:-3]) == {"progress"}
    assert lines[-4]["pages"] == 32768
    assert {"pages": 32768, "bytes": 128 << 20, "actual": 0}.items() <= lines[-1].items()
    assert lines[-1]["seconds"] > 0


def test_inflate_as_text_has_no_escapes_in_a_pipe(uvirtio: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = uvirtio("balloon", "inflate", "qemu:virtio-balloon-pci", "8M", "--hold", "0.1")
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert "\r" not in out
    assert out.splitlines()[-1].startswith("done: 2048 pages (8 MiB)")


@pytest.mark.fault(92)
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("when", ["progress", "holding"])
def test_a_signal_leaves_in_order(start: Callable[..., Command], number: int, when: str) -> None:
    address = "qemu:q35,ram=2G/virtio-balloon-pci"
    command = start(
        "balloon", "inflate", address, "256M" if when == "holding" else "1G", "--json", "-v", program=True
    )
    drain = _drain(command)
    command.event(when)
    (qemu,) = command.qemus()
    command.process.send_signal(number)
    leaving = command.event("leaving")
    assert leaving["reason"] == signal.Signals(number).name
    if when == "progress":
        assert leaving["pages"] <= 1 << 18  # less, unless this test was slow
    assert command.process.stdout is not None
    out = command.process.stdout.read()
    assert command.process.wait(LIMIT) == SIGNALS[signal.Signals(number)]
    assert "error" not in out
    assert gone(qemu)
    assert _last_actual(drain()) == 0


def _drain(command: Command) -> Callable[[], list[str]]:
    """Reads stderr beside the test, so that a trace cannot block the command; gives its lines at the end."""
    lines: list[str] = []
    assert command.process.stderr is not None
    reader = threading.Thread(target=lambda stream: lines.extend(stream), args=(command.process.stderr,))
    reader.start()

    def result() -> list[str]:
        reader.join(LIMIT)
        assert not reader.is_alive()
        return lines

    return result


def _last_actual(trace: list[str]) -> int | None:
    """The last value that was written to ``actual``: bytes 4 to 7 of the device configuration (5.5.4)."""
    written = [line.split("<-")[1] for line in trace if " config+0x04 actual write32 <-" in line]
    return int(written[-1], 16) if written else None


def test_follow(start: Callable[..., Command], witness: Callable[[], Witness], tmp_path: Path) -> None:
    address = f"qemu:q35,qmp={tmp_path / 'qmp'}/virtio-balloon-pci"
    command = start("balloon", "follow", address, "--limit", "96M", "--json")
    assert command.event("following")["pages"] == 0
    qemu = witness()
    for target, expected in ((64, 64), (32, 32)):
        qemu.execute("balloon", value=(512 - target) << 20)
        assert command.event("reached")["bytes"] == expected << 20
    qemu.execute("balloon", value=(512 - 128) << 20)
    assert command.event("reached")["bytes"] == 96 << 20
    command.process.send_signal(signal.SIGINT)
    assert command.event("leaving")["reason"] == "SIGINT"
    assert command.end()[0] == 130


def test_follow_for_a_while(uvirtio: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = uvirtio("balloon", "follow", "qemu:virtio-balloon-pci", "--for", "0.3", "--json")
    assert code == 0
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["following", "leaving", "done"]


# --- input --------------------------------------------------------------------------------------------------


def test_input_info(uvirtio: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = uvirtio("input", "info", "qemu:pc/virtio-tablet-pci", "--json")
    made = json.loads(out)
    assert (code, made["name"], made["ids"]["bus"]) == (0, "QEMU Virtio Tablet", "BUS_VIRTUAL")
    assert {"EV_KEY", "EV_ABS"} <= {kind["name"] for kind in made["events"]}
    assert [(axis["name"], axis["min"], axis["max"]) for axis in made["axes"]] == [
        ("ABS_X", 0, 32767),
        ("ABS_Y", 0, 32767),
    ]


def press(qemu: Witness, down: bool) -> None:
    key = {"down": down, "key": {"type": "qcode", "data": "a"}}
    qemu.execute("input-send-event", events=[{"type": "key", "data": key}])


def test_input_events_as_evtest_has_them(
    start: Callable[..., Command], witness: Callable[[], Witness], tmp_path: Path
) -> None:
    command = start("input", "events", f"qemu:pc,qmp={tmp_path / 'qmp'}/virtio-keyboard-pci", "--count", "4")
    assert "QEMU Virtio Keyboard" in command.line()
    qemu = witness()
    press(qemu, down=True)
    first = command.line()  # flushed at once, before there is more
    assert first.startswith("Event: time ")
    assert first.endswith(", type 1 (EV_KEY), code 30 (KEY_A), value 1\n")
    assert command.line().endswith(", -------------- SYN_REPORT ------------\n")
    press(qemu, down=False)
    code, out, err = command.end()
    assert (code, err) == (0, "")
    assert out.splitlines()[0].endswith("code 30 (KEY_A), value 0")


def test_input_events_as_json_until_a_signal(
    start: Callable[..., Command], witness: Callable[[], Witness], tmp_path: Path
) -> None:
    command = start("input", "events", f"qemu:pc,qmp={tmp_path / 'qmp'}/virtio-keyboard-pci", "--json")
    command.event("waiting")
    press(witness(), down=True)
    made = command.event("input")
    assert (made["type_name"], made["code_name"], made["value"]) == ("EV_KEY", "KEY_A", 1)
    command.process.send_signal(signal.SIGINT)
    code, out, err = command.end()
    assert (code, err) == (130, "")
    assert "error" not in out


def test_input_events_for_a_while(uvirtio: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = uvirtio("input", "events", "qemu:pc/virtio-keyboard-pci", "--for", "0.2")
    assert (code, len(out.splitlines())) == (0, 1)


# --- wrong use ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "code", "error"),
    [
        ("qemu:virtio-balloon-pci", 5, "UV-NODEV-NOT-VIRTIO"),
        ("qemu:virtio-nonsense-pci", 4, "UV-ENV-QEMU-FAILED"),
        ("qemu:sparc/virtio-rng-pci", 2, "UV-USAGE-ADDRESS"),
        ("qemu:q35,binary=/nonexistent/virtio-rng-pci", 4, "UV-ENV-QEMU"),
        ("0000:ff:1f.7", 5, "UV-NODEV-NONE"),
        ("virtio0", 3, "UV-REFUSED-NOT-BOUND"),
        ("nonsense", 2, "UV-USAGE-ADDRESS"),
    ],
)
def test_wrong_addresses(
    uvirtio: Callable[..., tuple[int, str, str]], tmp_path: Path, address: str, code: int, error: str
) -> None:
    (tmp_path / "sys/bus/pci/devices").mkdir(parents=True)
    argv = ("rng", "read", address, "8", "--root", str(tmp_path))
    ended, out, err = uvirtio(*argv)
    assert (ended, out) == (code, "")
    assert err.startswith(f"uvirtio: {error}: ")
    ended, out, err = uvirtio(*argv, "--json")
    assert (ended, err) == (code, "")
    assert json.loads(out)["error"]["code"] == error


@pytest.mark.parametrize("verb", [["rng", "read", "DEV", "8"], ["diag", "DEV"], ["reset", "DEV"]], ids=" ".join)
def test_a_denied_device(uvirtio: Callable[..., tuple[int, str, str]], tmp_path: Path, verb: list[str]) -> None:
    (tmp_path / "etc/uvirtio").mkdir(parents=True)
    (tmp_path / "etc/uvirtio/deny").write_text("qemu:virtio-rng-*\n")
    argv = ["qemu:virtio-rng-pci" if word == "DEV" else word for word in verb]
    code, out, _ = uvirtio(*argv, "--json", "--root", str(tmp_path))
    assert code == 3
    assert json.loads(out)["error"]["code"] == "UV-REFUSED-DENIED"


def test_qemu_missing_from_the_path(
    uvirtio: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = uvirtio("rng", "read", "qemu:virtio-rng-pci", "8")
    assert code == 4
    assert err.startswith("uvirtio: UV-ENV-QEMU: ")
    assert "qemu-system-x86" in err


def test_a_device_that_is_taken_away(
    start: Callable[..., Command], witness: Callable[[], Witness], tmp_path: Path
) -> None:
    command = start("balloon", "inflate", f"qemu:q35,qmp={tmp_path / 'qmp'}/virtio-balloon-pci", "8M", "--json")
    command.event("holding")
    (qemu,) = command.qemus()
    os.kill(qemu, signal.SIGKILL)
    code, out, err = command.end()
    assert (code, err) == (5, "")
    assert json.loads(out.splitlines()[-1])["error"]["code"] == "UV-NODEV-GONE"
