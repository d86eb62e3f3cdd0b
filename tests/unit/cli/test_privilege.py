"""What an administrator is given for users and services, and what a service tells its manager."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from uvirtio.cli import main
from uvirtio.cli.systemd import Manager
from uvirtio.cli.verbs import doctor

RULES = next(top for top in Path(__file__).resolve().parents if (top / "pyproject.toml").exists()) / "udev-rules"


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The socket of a service manager with a watchdog of 0.4 s; yields what it has heard."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(path))
        heard.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))

        def said() -> list[str]:
            found = []
            while True:
                try:
                    found.append(heard.recv(4096).decode())
                except BlockingIOError:
                    return found

        yield said


def test_a_balloon_that_follows_is_a_service(manager) -> None:
    assert main(["balloon", "follow", "scripted:balloon", "--for", "1"]) == 0
    said = manager()
    assert said[0].startswith("READY=1\nSTATUS=following")
    assert said.count("WATCHDOG=1") >= 2 and said[-1] == "STOPPING=1"


@pytest.mark.parametrize(
    ("environ", "every"),
    [
        ({}, None),
        ({"NOTIFY_SOCKET": "/none", "WATCHDOG_USEC": "60000000"}, 30.0),
        ({"NOTIFY_SOCKET": "/none", "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"NOTIFY_SOCKET": "/none", "WATCHDOG_USEC": "-1"}, None),
        ({"NOTIFY_SOCKET": "/none", "WATCHDOG_USEC": "\u0663"}, None),
        ({"NOTIFY_SOCKET": "/none", "WATCHDOG_USEC": "0"}, 0.1),
        ({"WATCHDOG_USEC": "60000000"}, None),
        ({"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "60000000"}, 30.0),
    ],
)
def test_what_a_manager_wants(environ: dict[str, str], every: float | None) -> None:
    manager = Manager(environ)
    assert manager.every == every
    for say in (manager.alive, manager.stopping, lambda: manager.ready("at work")):
        say()  # one that is not there ends nothing


def test_an_abstract_address() -> None:
    name = f"uvirtio-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(f"\0{name}")
        heard.settimeout(5)
        Manager({"NOTIFY_SOCKET": f"@{name}"}).stopping()
        assert heard.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("there", [False, True])
def test_what_was_captured_is_for_its_owner(there: bool, tmp_path: Path) -> None:
    """As recordings of input, traces, dumps, reports and the journal are, each in the tests of its own."""
    out = tmp_path / "frames.pcap"
    if there:
        out.touch(0o666)
    before = os.umask(0)
    try:
        assert main(["net", "capture", "scripted:net", "-o", str(out), "--for", "0.1"]) == 0
    finally:
        os.umask(before)
    assert out.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("which", doctor.Text)
def test_the_printed_files_are_those_that_are_installed(which: doctor.Text, capsys) -> None:
    assert main(["doctor", "--print", which]) == 0
    text = capsys.readouterr().out
    assert text == (RULES / doctor._FILES[which]).read_text()
    assert text.startswith("# ") and len(text) > 200


def test_files_that_are_not_there_are_a_lack(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(doctor, "rules_folder", lambda: None)
    assert main(["doctor", "--print", "unit"]) == 4
    assert "uvirtio-balloon@.service is not here" in capsys.readouterr().err
    assert main(["doctor", "--print", "unit", "--json"]) == 2


def test_the_limits_are_lines_of_limits_conf() -> None:
    lines = (RULES / "50-uvirtio.limits.conf").read_text().splitlines()
    for line in (line for line in lines if not line.startswith("#")):
        assert re.fullmatch(r"@uvirtio  (soft|hard)  (memlock|nofile)  \d+", line), line


def test_the_unit_is_valid_and_closed(tmp_path: Path) -> None:
    unit = RULES / "uvirtio-balloon@.service"
    text = unit.read_text()
    for line in ("Type=notify", "NoNewPrivileges=yes", "ProtectSystem=strict", "DevicePolicy=closed"):
        assert f"\n{line}\n" in text
    assert "\nCapabilityBoundingSet=CAP_SYS_ADMIN CAP_IPC_LOCK\n" in text
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze here")
    shutil.copy(unit, tmp_path)
    done = subprocess.run(
        [program, "verify", str(tmp_path / unit.name)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
