"""The systemd unit of udev-rules/ under a real systemd, which is process 1 of a PID namespace of its own.

It has this kernel, its control groups, devices and root; only the lab's own process 1 is another. What the lab
changes of the unit is in a drop-in: no other units, where output goes, deadlines that suit an emulated CPU.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.commands import rights, uvirtio
from tests.vm.qmp_witness import Witness
from tests.vm.test_commands import balloon_size, until
from tests.vm.test_drivers import driver_of
from uvirtio.cli.verbs.doctor import Text, text_of

MIB = 1 << 20
PATIENCE = 240
CHECKOUT = Path(__file__).resolve().parents[2]
TOP, UNITS, OUTPUT = Path("/opt/uvirtio"), Path("/etc/systemd/system"), Path("/run/service-output")
NAME = "uvirtio-balloon@"

DROP_IN = f"""
[Unit]
DefaultDependencies=no
[Service]
TimeoutStartSec={PATIENCE}
WatchdogSec=20
RestartSec=1
StandardOutput=append:{OUTPUT}
StandardError=append:{OUTPUT}
"""

PROGRAM = f"""#!{TOP}/venv/bin/python
import sys
sys.path.insert(0, "{TOP}/checkout")
from uvirtio.cli import main
sys.exit(main())
"""


def systemctl(*words: str, check: bool = True) -> str:
    """As seen from inside: the manager takes only processes that it sees, by the pid that their socket shows."""
    (one,) = MANAGER
    inside = ["nsenter", f"--target={one}", "--pid", "--mount", "systemctl"]
    done = subprocess.run(
        [*inside, *words], capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL
    )
    told = OUTPUT.read_text() if OUTPUT.exists() else ""
    assert done.returncode == 0 or not check, f"{done.stderr}{done.stdout}{told}"
    return done.stdout


MANAGER: list[int] = []
"""The manager's process, as the lab's own namespace numbers it."""


def shown(unit: str, name: str) -> str:
    return systemctl("show", unit, "--value", "-p", name).strip()


def install(package: Path) -> None:
    """What the guest's own root lacks of the package."""
    for found in sorted(package.rglob("*")):
        target = Path("/", found.relative_to(package))
        if found.is_dir() and not found.is_symlink():
            target.mkdir(parents=True, exist_ok=True)
        elif not os.path.lexists(target):
            shutil.copy2(found, target, follow_symlinks=False)


@pytest.fixture(scope="module")
def manager() -> Iterator[None]:
    """A booted systemd that has started nothing, and the command outside of homes, which the unit may not see."""
    package = os.environ.get("UVIRTIO_SYSTEMD")
    if not package:
        pytest.skip("UVIRTIO_SYSTEMD does not name an unpacked systemd (python -m lab.systemd makes one)")
    install(Path(package))
    for source, place in ((Path(sys.prefix), TOP / "venv"), (CHECKOUT, TOP / "checkout")):
        place.mkdir(parents=True)
        subprocess.run(["mount", "--bind", str(source), str(place)], check=True)
    command = Path("/usr/local/bin/uvirtio")
    command.unlink(missing_ok=True)
    command.write_text(PROGRAM)
    command.chmod(0o755)
    shutil.rmtree(UNITS, ignore_errors=True)
    (UNITS / f"{NAME}.service.d").mkdir(parents=True)
    (UNITS / f"{NAME}.service").write_text(text_of(Text.UNIT))
    (UNITS / f"{NAME}.service.d/lab.conf").write_text(DROP_IN)
    (UNITS / "lab.target").write_text("[Unit]\nDefaultDependencies=no\n")
    if not Path("/etc/machine-id").exists():
        Path("/etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    subprocess.run(["mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"], check=False)
    words = ["unshare", "--fork", "--pid", "--mount", "--mount-proc", "--kill-child"]
    environ = {"PATH": os.environ["PATH"], "container": "uvirtio-lab"}
    program = ["/usr/lib/systemd/systemd", "--system", "--unit=lab.target", "--log-target=console"]
    with Path("/run/systemd-log").open("wb") as log:
        booted = subprocess.Popen(
            [*words, *program], env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    children = Path(f"/proc/{booted.pid}/task/{booted.pid}/children")
    try:
        until(lambda: children.read_text() != "", "systemd to be started")
        MANAGER.append(int(children.read_text()))
        until(lambda: "running" in systemctl("is-system-running", check=False), "systemd to run", PATIENCE)
        yield
    finally:
        MANAGER.clear()
        booted.kill()
        booted.wait(PATIENCE)
        print(Path("/run/systemd-log").read_text(errors="replace")[-4000:])
        print(OUTPUT.read_text() if OUTPUT.exists() else "no output")


def process_of(address: str) -> int:
    """The service's process as this PID namespace numbers it."""
    (found,) = (
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdecimal() and f"\0balloon\0follow\0{address}\0".encode() in command_line(path)
    )
    return found


def command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def denied(prefix: list[str], *words: str) -> str:
    """What refuses this command, which else works."""
    assert subprocess.run(words, capture_output=True, timeout=60).returncode == 0
    done = subprocess.run([*prefix, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0, done.stdout
    return done.stderr


def test_the_unit_keeps_a_balloon_at_the_hosts_target(
    manager: None, lab_devices: dict[str, str], witness: Witness
) -> None:
    address = lab_devices["balloon-service"]
    unit = f"{NAME}{address}.service"
    full = balloon_size(witness)
    assert uvirtio("bind", address).returncode == 0

    systemctl("start", unit)  # it returns once the service has said READY=1
    assert shown(unit, "ActiveState") == "active" and shown(unit, "Type") == "notify"
    assert shown(unit, "StatusText").startswith("following the host's target; ")
    first = process_of(address)
    assert rights(first) == set(), "nothing is locked beyond a limit that there is not"
    witness.execute("balloon", value=full - 16 * MIB)
    until(lambda: balloon_size(witness) == full - 16 * MIB, "the balloon to follow", PATIENCE)

    # Its view of the machine.
    inside = ["nsenter", f"--target={first}", "--mount"]
    assert "Read-only file system" in denied(inside, "touch", "/usr/local/of-the-test")
    assert "Read-only file system" in denied(inside, "touch", "/etc/of-the-test")
    group = f"/sys/fs/cgroup{shown(unit, 'ControlGroup')}"
    joined = ["sh", "-c", f'echo $$ > "{group}/cgroup.procs"; exec "$@"', "sh"]
    assert "not permitted" in denied(joined, "head", "-c0", "/dev/mem")

    # Its watchdog: fed for longer than it waits, and not by a process that is stopped.
    time.sleep(25)
    assert process_of(address) == first and shown(unit, "NRestarts") == "0"
    os.kill(first, signal.SIGSTOP)
    until(lambda: shown(unit, "NRestarts") == "1", "the watchdog", PATIENCE)
    until(lambda: shown(unit, "SubState") == "running", "the next start", PATIENCE)
    assert process_of(address) != first
    until(lambda: balloon_size(witness) == full - 16 * MIB, "the balloon to follow again", PATIENCE)

    systemctl("stop", unit)
    assert (shown(unit, "ActiveState"), shown(unit, "Result")) == ("inactive", "success")
    assert balloon_size(witness) == full
    witness.execute("balloon", value=full)
    assert uvirtio("restore", address).returncode == 0
    assert driver_of(address) == "virtio-pci"
