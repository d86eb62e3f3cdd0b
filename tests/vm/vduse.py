"""vDPA devices for the tests: VDUSE's disk and card, and how any of them changes hands.

The disk is a file, QEMU's storage daemon that serves it, and the kernel's vDPA device before it; for machines with
the vduse module (Linux 6.12 as Debian has it). The file is the witness. The card is DPDK's, and returns frames.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEVICES = Path("/sys/bus/vdpa/devices")
PATIENCE = 30


class Disk:
    """A disk at ``vdpa:NAME`` whose bytes are in ``path``."""

    def __init__(self, name: str, path: Path, daemon: int) -> None:
        self.name = name
        self.path = path
        self.daemon = daemon
        self.address = f"vdpa:{name}"

    @property
    def driver(self) -> str:
        return driver_of(self.name)

    def signal(self, number: int) -> None:
        """Send the daemon a signal: SIGSTOP is a device that hangs."""
        os.kill(self.daemon, number)

    def contents(self, offset: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(length)


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


@contextmanager
def disk(name: str, directory: Path, size: int = 1 << 20) -> Iterator[Disk]:
    """A disk of ``size`` random bytes, in the hands of no driver or of the first that matches."""
    for module in ("vduse", "vhost_vdpa", "virtio_vdpa", "virtio_blk"):
        run("modprobe", module)
    path = directory / f"{name}.img"
    path.write_bytes(os.urandom(size))
    pid = directory / f"{name}.pid"
    run(
        "qemu-storage-daemon",
        "--blockdev",
        f"driver=file,node-name=file,filename={path}",
        "--export",
        f"type=vduse-blk,id=export,node-name=file,name={name},writable=on,num-queues=2",
        "--daemonize",
        "--pidfile",
        str(pid),
    )
    daemon = int(pid.read_text())
    try:
        run("vdpa", "dev", "add", "name", name, "mgmtdev", "vduse")
        try:
            yield Disk(name, path, daemon)
        finally:
            run("vdpa", "dev", "del", name)
    finally:
        os.kill(daemon, signal.SIGCONT)
        os.kill(daemon, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while Path("/proc", str(daemon)).exists() and time.monotonic() < deadline:
            time.sleep(0.05)


@contextmanager
def card(name: str, directory: Path) -> Iterator[str]:
    """A network card that sends back what it is sent, in the hands of no driver or of the first that matches."""
    for module in ("vduse", "vhost_vdpa"):
        run("modprobe", module)
    log = directory / f"{name}.log"
    eal = ["--no-huge", "-m", "64", "--no-pci", "--no-shconf", f"--file-prefix={name}", "--lcores", "0@0,1@0"]
    eal += ["--vdev", f"net_vhost0,iface=/dev/vduse/{name},queues=1"]
    own = ["--auto-start", "--forward-mode=io", "--port-topology=loop", "--total-num-mbufs=4096", "--no-mlockall"]
    with log.open("wb") as said:
        daemon = subprocess.Popen(
            ["dpdk-testpmd", *eal, "--", *own], stdin=subprocess.PIPE, stdout=said, stderr=said
        )
    try:
        deadline = time.monotonic() + PATIENCE
        # It adds its device to the kernel's before it listens to it.
        while not Path("/dev/vduse", name).exists() or "Checking link" not in log.read_text():
            assert daemon.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        run("vdpa", "dev", "add", "name", name, "mgmtdev", "vduse")
        try:
            yield f"vdpa:{name}"
        finally:
            run("vdpa", "dev", "del", name)
    finally:
        daemon.kill()
        daemon.wait(PATIENCE)
        assert daemon.stdin is not None
        daemon.stdin.close()


def driver_of(name: str) -> str:
    link = DEVICES / name / "driver"
    return link.resolve().name if link.exists() else ""


def hand_over(name: str, driver: str) -> None:
    """By hand, so that what is tested with it does not lean on bind."""
    device = DEVICES / name
    if driver_of(name) == driver:
        return
    (device / "driver_override").write_text(driver)
    if driver_of(name):
        (device / "driver" / "unbind").write_text(name)
    Path("/sys/bus/vdpa/drivers_probe").write_text(name)
    assert driver_of(name) == driver
    (device / "driver_override").write_text("\n")
