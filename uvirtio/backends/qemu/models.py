"""The kinds of machine that QEMU is started as: where each has its memory, its windows and its interrupt lines.

Data only. Firmware and operating system would read it from ACPI tables or a device tree; here it is copied from
QEMU's own sources of the boards (hw/i386, hw/arm/virt.c, hw/riscv/virt.c, hw/loongarch/virt.c), and tests compare
it with what QEMU reports.
"""

from __future__ import annotations

from uvirtio.typed import NamedTuple

MIB = 1 << 20
GIB = 1 << 30


BIG_ENDIAN = (
    *("hppa", "m68k", "microblaze", "mips", "mips64", "or1k", "ppc", "ppc64"),
    *("s390x", "sh4eb", "sparc", "sparc64", "xtensaeb"),
)
"""The targets of QEMU (``qemu-system-TARGET``) whose CPU is big-endian."""

_BIG_ENDIAN_BOARDS = ("pseries", "powernv", "s390-ccw-virtio")

WHY_LITTLE = (
    "until a driver has taken VERSION_1 QEMU shows even the modern configuration in the byte order of its target,"
    " so only little-endian targets are driven here"
)


def is_big_endian(name: str) -> bool:
    """Whether a target of QEMU, or a machine that only such targets have, is big-endian."""
    return name in BIG_ENDIAN or name.startswith(_BIG_ENDIAN_BOARDS)


class Ram(NamedTuple):
    """Place of guest memory: ``split`` bytes at ``base``, the rest at ``high`` (None: there is no rest)."""

    base: int
    split: int
    high: int | None
    others: tuple[int, ...] = ()
    """Where other versions of QEMU have the rest; ``GuestMemory.locate`` finds out."""

    least: int = 32 * MIB
    """The least that there can be, in bytes. The first 16 MiB are not used: see ``GuestMemory``."""

    def address_of(self, offset: int) -> int:
        """Return the guest-physical address of a byte of the memory backend."""
        if self.high is None or offset < self.split:
            return self.base + offset
        return offset - self.split + self.high


class AcpiEjection(NamedTuple):
    """How a guest releases a device of the root bus (docs/specs/acpi_pci_hotplug.txt of QEMU)."""

    eject: int
    """The I/O port to which a slot's bit is written."""

    select: int
    """The I/O port to which the number of the bus is written first; the root bus is 0."""


class PciBus(NamedTuple):
    """The root bus: access to configuration space, addresses for BARs, routing of the interrupt pins."""

    ecam: int | None
    """Where configuration space is mapped (PCI Express); None: through the ports 0xCF8 and 0xCFC."""

    memory: tuple[int, int]
    high: tuple[int, int]
    """For 64-bit BARs that do not fit below. Plugged memory begins right above RAM, far below this."""

    ports: tuple[int, int]
    ports_at: int | None
    """Where I/O ports are mapped in memory; None on x86, which has instructions for them."""

    lines: tuple[int, int, int, int]
    """The interrupt lines of the four PIRQs: pin p (1 is INTA) of slot s leads to (s + p + shift) modulo 4."""
    shift: int
    last_slot: int = 31
    """Higher slots are routed by registers that are not programmed here."""

    setup: tuple[tuple[int, int, int], ...] = ()
    """What firmware would write, through the ports: (devfn, offset, 32-bit value)."""

    name: str = "pcie.0"
    """QEMU's name of the root bus."""

    ejection: AcpiEjection | None = None
    """How devices of the root bus are plugged and unplugged; None: only those behind root ports can be."""

    native: tuple[str, ...] = ()
    """Arguments that make root ports do PCI Express's own hot-plug."""


class MmioBus(NamedTuple):
    """The virtio-mmio transports: ``count`` windows of 512 bytes, with lines from ``first_line``."""

    base: int
    count: int  # type: ignore[assignment]  # a tuple has a method of this name
    first_line: int
    stride: int = 0x200
    """Bytes from one window to the next."""


class Model(NamedTuple):
    """One kind of machine."""

    name: str
    binary: str
    package: str
    """The package of Debian that has the program."""

    ram: Ram
    controller: tuple[str, ...]
    """The interrupt controller: a type in the QOM tree (versions of QEMU have several), or a name."""

    pci: PciBus | None
    mmio: MmioBus | None
    older_package: str = ""
    """The package that had the program in earlier releases."""

    targets: tuple[str, ...] = ("x86_64", "i386")
    """The CPUs whose QEMU has this machine, as in the names of the programs, ``qemu-system-TARGET``."""

    board: str = ""
    """QEMU's name of the machine; empty: ``name``."""

    options: str = ""
    """Additional options of ``-machine``."""

    spared: str = ""
    """Options of ``-machine`` that leave out what only a guest or the caller's own arguments would use."""

    split_option: str = ""
    """The option of ``-machine`` that sets the split of memory; empty where the machine has a fixed one."""

    arguments: tuple[str, ...] = ()
    iommus: tuple[str, ...] = ("none",)
    """The IOMMUs that this machine can have."""

    firmware: bool = False
    """The CPU is parked by a firmware of this package; False: it is never started."""

    def fits(self, device: str) -> bool:
        """Whether this machine has a bus for a ``-device`` of this name."""
        return self.mmio is not None if is_mmio(device) else self.pci is not None


def is_mmio(device: str) -> bool:
    """Whether a ``-device`` argument is a virtio-mmio device: its name ends in ``-device``, but for two."""
    name = device.partition(",")[0]
    return name.endswith("-device") or name in ("virtio-mem", "virtio-pmem")


_X86 = ("qemu-system-x86_64", "qemu-system-x86")
_X86_RAM = Ram(base=0, split=2 * GIB, high=4 * GIB)
_ECAM_Q35 = 0xB0000000
_PCIEXBAR = (0, 0x60, _ECAM_Q35 | 1)  # of q35's host bridge
_PIIX3_IRQS = (5, 7, 10, 11)  # free on a PC without serial and parallel ports
_PIIX3_PIRQ = (1 << 3, 0x60, int.from_bytes(bytes(_PIIX3_IRQS), "little"))

Q35 = Model(
    name="q35",
    binary=_X86[0],
    package=_X86[1],
    ram=_X86_RAM,
    split_option="max-ram-below-4g",
    options="pit=off",
    spared="hpet=off,i8042=off,vmport=off,sata=off,smbus=off",
    iommus=("none", "intel"),
    firmware=True,
    controller=("ioapic",),
    pci=PciBus(
        ecam=_ECAM_Q35,
        memory=(0xC0000000, 0xFE000000),
        high=(1 << 39, 1 << 40),
        ports=(0xC000, 0x10000),
        ports_at=None,
        lines=(20, 21, 22, 23),
        shift=-1,
        last_slot=24,
        setup=(_PCIEXBAR,),
        native=("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"),
    ),
    mmio=None,
)

PC = Model(
    name="pc",
    binary=_X86[0],
    package=_X86[1],
    ram=_X86_RAM,
    split_option="max-ram-below-4g",
    options="pit=off",
    firmware=True,
    controller=("ioapic",),
    pci=PciBus(
        ecam=None,
        memory=(0xC0000000, 0xFE000000),
        high=(1 << 39, 1 << 40),
        ports=(0xC000, 0x10000),
        ports_at=None,
        lines=_PIIX3_IRQS,
        shift=-2,
        setup=(_PIIX3_PIRQ,),
        name="pci.0",
        ejection=AcpiEjection(eject=0xAE08, select=0xAE10),
    ),
    mmio=None,
)

# With one I/O APIC there are 8 transports, and their lines are those of the one that has a name.
MICROVM = Model(
    name="microvm",
    binary=_X86[0],
    package=_X86[1],
    ram=Ram(base=0, split=3 * GIB, high=4 * GIB),
    options="pit=off,ioapic2=off",
    firmware=True,
    controller=("ioapic",),
    pci=None,
    mmio=MmioBus(base=0xFEB00000, count=8, first_line=16),
)

VIRT = Model(
    name="virt",
    binary="qemu-system-aarch64",
    package="qemu-system-arm",
    targets=("aarch64",),
    ram=Ram(base=GIB, split=255 * GIB, high=None),
    options="gic-version=2",
    controller=("arm_gic",),
    pci=PciBus(
        ecam=0x4010000000,
        memory=(0x10000000, 0x3EFF0000),
        high=(1 << 39, 1 << 40),
        ports=(0x1000, 0x10000),
        ports_at=0x3EFF0000,
        lines=(3, 4, 5, 6),
        shift=-1,
    ),
    mmio=MmioBus(base=0x0A000000, count=32, first_line=16),
    arguments=("-cpu", "cortex-a57"),
)

# The window for BARs above 4 GiB begins at the first 16 GiB above all memory: a limit of memory keeps it in place.
RISCV64 = Model(
    name="riscv64",
    board="virt",
    binary="qemu-system-riscv64",
    package="qemu-system-riscv",
    older_package="qemu-system-misc",
    targets=("riscv64",),
    ram=Ram(base=2 * GIB, split=14 * GIB, high=None),
    controller=("riscv.sifive.plic",),
    pci=PciBus(
        ecam=0x30000000,
        memory=(0x40000000, 0x80000000),
        high=(16 * GIB, 32 * GIB),
        ports=(0x1000, 0x10000),
        ports_at=0x3000000,
        lines=(32, 33, 34, 35),
        shift=-1,
    ),
    mmio=MmioBus(base=0x10001000, count=8, first_line=1, stride=0x1000),
    arguments=("-bios", "none"),
)

LOONGARCH64 = Model(
    name="loongarch64",
    board="virt",
    binary="qemu-system-loongarch64",
    package="qemu-system-misc",
    targets=("loongarch64",),
    ram=Ram(base=0, split=256 * MIB, high=0x80000000, others=(0x90000000,), least=GIB),
    controller=("loongarch_pic", "loongarch_pch_pic"),
    pci=PciBus(
        ecam=0x20000000,
        memory=(0x40000000, 0x80000000),
        high=(0x40000000, 0x40000000),  # QEMU 7.2 has none
        ports=(0x4000, 0x10000),
        ports_at=0x18000000,
        lines=(16, 17, 18, 19),
        shift=-1,
    ),
    mmio=None,
)

MODELS = {model.name: model for model in (Q35, PC, MICROVM, VIRT, RISCV64, LOONGARCH64)}
