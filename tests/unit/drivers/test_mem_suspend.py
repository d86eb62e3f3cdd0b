"""The lock that keeps a machine awake while memory is plugged that a suspend would lose (MEM-15)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from uvirtio.cli import main
from uvirtio.drivers.mem import Mem, SuspendLock
from uvirtio.errors import MemNack
from uvirtio.host.roots import Roots
from uvirtio.opening import identify
from uvirtio.scripted.mem import Mem as Model
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.spec import features as f

ADDRESS = "0000:00:04.0"
PATIENCE = 20.0

# What systemd-inhibit(1) does with its arguments; it says who it is, and runs the command.
GRANTS = """#!/bin/sh
echo $$ "$@" >{log}
while case $1 in --*) true;; *) false;; esac; do shift; done
exec "$@"
"""
REFUSES = "#!/bin/sh\necho Access denied >&2\nexit 1\n"
HANGS = "#!/bin/sh\nexec sleep 60\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Roots]:
    """``machine(script, wake_locks=...)``: a made-up machine with logind, whose systemd-inhibit is this script."""

    def make(script: str | None, *, wake_locks: bool = False) -> Roots:
        roots = Roots.under(tmp_path)
        if script is not None:
            (roots.run / "systemd/seats").mkdir(parents=True)
            program = tmp_path / "bin/systemd-inhibit"
            program.parent.mkdir()
            program.write_text(script.format(log=tmp_path / "log"))
            program.chmod(0o755)
            monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        if wake_locks:
            (roots.sys / "power").mkdir(parents=True)
            for name in ("wake_lock", "wake_unlock"):
                (roots.sys / "power" / name).touch()
        return roots

    return make


def holder(tmp_path: Path) -> int:
    return int((tmp_path / "log").read_text().split()[0])


def ended(pid: int) -> bool:
    """Whether this process ends, within a while."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def test_logind_holds_it_off_until_it_is_released(machine: Callable[..., Roots], tmp_path: Path) -> None:
    with SuspendLock("because", roots=machine(GRANTS), timeout=PATIENCE) as lock:
        assert lock.means == []
        assert lock.hold() == ["systemd-inhibit"] == lock.hold()
        words = (tmp_path / "log").read_text()
        assert "--what=sleep" in words and "--mode=block" in words and "--why=because" in words
        assert lock.lacking == ["this kernel has no wake locks"]
        lock.release()
        assert lock.means == [] and ended(holder(tmp_path))
        assert lock.hold() == ["systemd-inhibit"], "and again"
    assert ended(holder(tmp_path))


def test_a_lock_whose_holder_was_ended_is_not_held(machine: Callable[..., Roots], tmp_path: Path) -> None:
    with SuspendLock("because", roots=machine(GRANTS), timeout=PATIENCE) as lock:
        assert lock.hold() == ["systemd-inhibit"]
        os.kill(holder(tmp_path), signal.SIGKILL)
        assert ended(holder(tmp_path)) and lock.means == []


@pytest.mark.fault(78)
def test_the_lock_ends_with_its_process_however_that_ends(machine: Callable[..., Roots], tmp_path: Path) -> None:
    machine(GRANTS)
    code = f"""
import sys
from uvirtio.drivers.mem import SuspendLock
from uvirtio.host.roots import Roots
lock = SuspendLock("because", roots=Roots.under({str(tmp_path)!r}), timeout={PATIENCE})
print(lock.hold(), flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "['systemd-inhibit']\n"
        process.send_signal(signal.SIGKILL)
    assert ended(holder(tmp_path))


@pytest.mark.parametrize("script", [REFUSES, HANGS])
def test_a_lock_that_is_not_granted_is_not_claimed(machine: Callable[..., Roots], script: str) -> None:
    with SuspendLock("because", roots=machine(script), timeout=0.3) as lock:
        assert lock.hold() == []
        assert lock.lacking[0] == "systemd-logind grants no lock"


def test_wake_locks_where_the_kernel_has_them(machine: Callable[..., Roots]) -> None:
    roots = machine(None, wake_locks=True)
    power = roots.sys / "power"
    with SuspendLock("because", roots=roots) as lock:
        assert lock.hold() == ["wake_lock"]
        assert (power / "wake_lock").read_text() == f"uvirtio-{os.getpid()}"
        assert (power / "wake_unlock").read_text() == ""
    assert (power / "wake_unlock").read_text() == f"uvirtio-{os.getpid()}"
    assert lock.means == []


def test_a_machine_without_either_says_so(machine: Callable[..., Roots]) -> None:
    with SuspendLock("because", roots=machine(None)) as lock:
        assert lock.hold() == []
        assert lock.lacking == ["systemd-logind does not run here", "this kernel has no wake locks"]


# --- the driver ---------------------------------------------------------------------------------------------


class Watched(SuspendLock):
    """Nothing but what it was told."""

    def __init__(self) -> None:
        super().__init__("test", roots=Roots.under("/nonexistent"))
        self.held = False

    def hold(self) -> list[str]:
        self.held = True
        return []

    def release(self) -> None:
        self.held = False


@pytest.mark.fault(78)
@pytest.mark.spec("MEM-15")
def test_it_is_held_while_anything_is_plugged() -> None:
    lock, model = Watched(), Model(requested=8 * (2 << 20))
    answered: list[bool] = []
    answer = model.handle
    model.handle = lambda *args: (answered.append(lock.held), answer(*args))[1]  # type: ignore[method-assign]
    with identify(ADDRESS, ScriptedDevice(model)) as device:
        with Mem(device, suspend_lock=lock) as mem:
            assert not lock.held
            mem.plug(mem.addr, 2)
            assert answered == [True], "before the first block was there"
            mem.unplug(mem.addr, 1)
            assert lock.held
            mem.unplug_all()
            assert not lock.held
            with pytest.raises(MemNack):
                mem.plug(mem.addr, 9)
            assert not lock.held
            mem.plug(mem.addr, 1)
        assert not lock.held, "the process no longer knows what becomes of it"
        with Mem(device, suspend_lock=lock):
            assert lock.held, "for what an earlier owner left"
    model.close()


@pytest.mark.spec("MEM-15")
def test_it_is_not_needed_where_plugged_memory_survives() -> None:
    lock, model = Watched(), Model(features=f.mask(f.Mem.PERSISTENT_SUSPEND), requested=2 << 20)
    with identify(ADDRESS, ScriptedDevice(model)) as device, Mem(device, suspend_lock=lock) as mem:
        mem.plug(mem.addr, 1)
        assert not lock.held
    model.close()


# --- the command --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [GRANTS, None])
def test_follow_says_whether_it_holds_it_off(
    machine: Callable[..., Roots],
    script: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    machine(script)
    model = Model(requested=4 << 20)
    monkeypatch.setattr("uvirtio.opening.open", lambda address, **_: identify(address, ScriptedDevice(model)))
    assert main(["mem", "follow", ADDRESS, "--for", "0.2", "--root", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert ("blocked meanwhile by systemd-inhibit" in out) == (script is not None)
    assert ("cannot block a suspend" in err) == (script is None)
    if script is not None:
        assert ended(holder(tmp_path))
    model.close()


@pytest.mark.fault(91)
def test_a_forked_child_releases_nothing(machine: Callable[..., Roots], tmp_path: Path) -> None:
    roots = machine(GRANTS, wake_locks=True)
    with SuspendLock("a test", roots=roots, timeout=PATIENCE) as lock:
        assert len(lock.hold()) == 2
        child = os.fork()
        if not child:
            try:
                lock.release()
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (roots.sys / "power/wake_unlock").read_text() == ""
        assert len(lock.means) == 2
        os.kill(holder(tmp_path), 0)
    assert (roots.sys / "power/wake_unlock").read_text()
    assert lock.means == []
