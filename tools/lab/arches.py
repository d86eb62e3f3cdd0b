"""The architectures that a lab VM may have: what is different about each, in one table."""

from __future__ import annotations

from dataclasses import dataclass

from lab import LabError


@dataclass(frozen=True, slots=True)
class Arch:
    """One architecture, with the names that Debian, QEMU and the kernel have for its things."""

    name: str
    """As the kernel says it (``uname -m``), and QEMU."""
    debian: str
    """As Debian says it."""
    image: str
    """The package that depends on the newest kernel; a flavour follows behind it (``-16k``)."""
    flavours: tuple[str, ...]
    kernel: str
    """The one that is booted, where none is named."""
    machine: str
    """QEMU's -M argument, where none is given."""
    cpu: str
    iommus: tuple[str, ...]
    """What may stand between devices and memory; the first is the default."""
    console: str
    """The terminal device of the guest's first serial port."""
    witness: str
    """That of the second, which is wired to QMP."""
    append: str
    """For the kernel's command line."""

    @property
    def qemu(self) -> str:
        """The program."""
        return f"qemu-system-{self.name}"

    def has_root_ports(self, machine: str) -> bool:
        """Whether a device can have a PCI Express root port of its own on this machine."""
        return machine.split(",")[0] in ("q35", "virt")


# An emulated CPU that the host gives no time to is no lockup of the guest's, nor is a kernel thread that got none
# of it in 21 seconds, which is when RCU complains: wait longer for both.
_PATIENT = "quiet loglevel=5 panic=-1 watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120 uvirtio.lab=1"

X86_64 = Arch(
    name="x86_64",
    debian="amd64",
    image="linux-image-amd64",
    flavours=("",),
    kernel="6.1",
    machine="q35",
    # No other model: without RDRAND the first Python waits seconds for entropy. With ERMS Linux clears a page by
    # "rep stosb", which QEMU emulates byte by byte: several times as slow as the eight bytes at a time without.
    cpu="max,-erms",
    iommus=("intel", "none"),
    console="/dev/ttyS0",
    witness="/dev/ttyS1",
    # Nor is the timer broken: at boot Linux counts the timer's interrupts over a short time, by the CPU's clock,
    # and panics when too few came ("IO-APIC + timer doesn't work"), which is what a busy host makes of it. Linux
    # leaves that check out by itself under KVM; here it has to be told.
    append=f"{_PATIENT} no_timer_check",
)

AARCH64 = Arch(
    name="aarch64",
    debian="arm64",
    image="linux-image-arm64",
    flavours=("", "-16k"),
    kernel="6.12",
    machine="virt,gic-version=3",
    # The signatures of pointers by an algorithm of QEMU's own: with that of the architecture, which is slow to
    # emulate, everything takes three times as long.
    cpu="max,pauth-impdef=on",
    iommus=("smmuv3", "virtio", "none"),
    console="/dev/ttyAMA0",
    witness="/dev/ttyS0",  # a PCI function: the board has one port only that is Linux's
    append=_PATIENT,
)

ALL = {arch.name: arch for arch in (X86_64, AARCH64)}


def get(name: str) -> Arch:
    """The architecture ``name``; LabError if there is none."""
    if name not in ALL:
        raise LabError(f"architecture {name}: not one of {', '.join(ALL)}", 2)
    return ALL[name]
