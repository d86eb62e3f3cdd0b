"""The exceptions of this package.

Every error says five things: a stable ``code``, what happened (the message), the value ``seen``, what was
``expected``, and the ``remedy``: the next thing a person can do. ``str(error)`` is the message; a traceback, and
a test report, show the other three below it (they are notes, PEP 678). The class decides the exit code of the
command line, so that a library user and a shell script tell the same cases apart.

Where Python has a class for the case, the error derives from it too: a ``DeviceTimeout`` is a ``TimeoutError``,
missing rights are a ``PermissionError``, an unusable argument is a ``ValueError``, an address without a device is
a ``FileNotFoundError``. Those among them that are OSErrors have no ``errno``: they are not the answer to one
system call.
"""

from __future__ import annotations

from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, ClassVar


__all__ = [
    "AdminFailed", "BadAddress", "BadCapture", "BadChain", "BadDump", "BadFrame", "BadSize", "BadTrace",
    "BeyondEnd", "BlkIoError", "BlkRefusal", "BlkUnsupported", "Blocked", "Busy", "CapabilityError",
    "Claimed", "Closed", "ConfigError", "ConfigUnstable", "Denied", "DeviceAbsent", "DeviceBroken",
    "DeviceFailure", "DeviceGone", "DeviceNeedsReset", "DeviceResetByOther", "DeviceTimeout", "Diverged",
    "EnvironmentLack", "FeatureMissing", "FeaturesRefused", "ForeignWindow", "GroupNotViable", "GuardianLost",
    "HugePagesLack", "InUse", "LimitReached", "MemBusy", "MemError", "MemNack", "MemRefusal",
    "MemlockExceeded", "MemoryScattered", "Misuse", "ModuleLack", "NetError", "NetRefused", "NetStalled",
    "NoIommu", "NoSuchDevice", "NotBound", "NotPlugged", "NotSupported", "NotVirtio", "OperationFailed",
    "PageMoved", "PagemapHidden", "PermissionLack", "ProtocolError", "QemuFailed", "QemuMissing",
    "QueueError", "QueueFull", "Refused", "ResetTimeout", "RingCorruption", "RngUnhealthy", "ScsiAnswer",
    "ScsiCheck", "ScsiRefusal", "ScsiStatus", "ScsiTransport", "UnsafeDma", "UsageError", "UvirtioError",
    "WriteRefused",
]  # fmt: skip


_MADE_TO_ORDER = ("qemu:", "scripted:", "vhost-user:")
"""How an address begins that says how its device is made, in as many words as that takes."""
_LONGEST, _HEAD, _TAIL = 64, 40, 16


def shortened(text: str) -> str:
    """``text`` with long addresses of devices that are made to order cut in their middle.

    Args:
        text: A message; words are separated by spaces.
    """
    return " ".join(_cut(word) for word in text.split(" ")) if len(text) > _LONGEST else text


def _cut(word: str) -> str:
    bare = word.strip("'\"():;,.")
    if len(bare) <= _LONGEST or not bare.startswith(_MADE_TO_ORDER):
        return word
    return word.replace(bare, f"{bare[:_HEAD]}...{bare[-_TAIL:]}")


class UvirtioError(Exception):
    """Base of all errors of this package.

    ``seen``, ``expected`` and ``remedy`` may be None where there is nothing to say; ``code`` and the message
    are always there. ``about`` is the register or field that the error is about, by its name in the standard,
    where one class of errors covers several.
    """

    code: ClassVar[str] = "UV-ERROR"
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        seen: Any = None,
        expected: Any = None,
        remedy: str | None = None,
        about: str | None = None,
    ) -> None:
        message = shortened(message)
        super().__init__(message)
        self.message = message
        self.about = about
        self.seen = seen
        self.expected = expected
        self.remedy = remedy
        for label, value in (("seen", seen), ("expected", expected), ("remedy", remedy)):
            if value is not None:
                self.add_note(f"  {label + ':':<10}{value}")

    def as_dict(self) -> dict[str, Any]:
        """The error as the ``error`` member of a JSON document."""
        return {
            "code": self.code,
            "message": self.message,
            "seen": self.seen,
            "expected": self.expected,
            "remedy": self.remedy,
        }


# --- exit 1: the device, or the operation on it, failed ---------------------------------------------------


class DeviceFailure(UvirtioError):
    """The device did something it must not, or did not do something it must."""

    code = "UV-DEV"


class CapabilityError(DeviceFailure):
    """The virtio capabilities of a PCI function cannot be used (4.1.4)."""

    code = "UV-DEV-CAPABILITY"


class QueueError(DeviceFailure):
    """A virtqueue is missing, or its registers do not read back what was written."""

    code = "UV-DEV-QUEUE"


class FeaturesRefused(DeviceFailure):
    """FEATURES_OK did not stick: the device does not take this subset of its features (3.1.1)."""

    code = "UV-DEV-FEATURES"


class FeatureMissing(DeviceFailure):
    """The device does not offer a feature without which this driver cannot run (2.2.1)."""

    code = "UV-DEV-FEATURE-MISSING"


class ResetTimeout(DeviceFailure, TimeoutError):
    """Status did not come back to 0 in time after a reset (2.4.2)."""

    code = "UV-DEV-RESET-TIMEOUT"


class DeviceTimeout(DeviceFailure, TimeoutError):
    """The device owes an answer and did not give it in time."""

    code = "UV-DEV-TIMEOUT"


class DeviceNeedsReset(DeviceFailure):
    """The device raised DEVICE_NEEDS_RESET (2.1.1)."""

    code = "UV-DEV-NEEDS-RESET"


class DeviceBroken(DeviceFailure):
    """An earlier error made the device unusable; it has to be opened again. ``__cause__`` is that error."""

    code = "UV-DEV-BROKEN"


class DeviceResetByOther(DeviceFailure):
    """Status reads 0 though this process did not reset the device."""

    code = "UV-DEV-RESET-BY-OTHER"


class GuardianLost(DeviceFailure):
    """The process that would quiet the device if this one were killed is gone itself."""

    code = "UV-DEV-GUARDIAN"


class RingCorruption(DeviceFailure):
    """A used entry names what was never posted, or the used index moved where it cannot (2.7.8)."""

    code = "UV-DEV-RING"


class ConfigUnstable(DeviceFailure):
    """config_generation changes at every read (2.5.1)."""

    code = "UV-DEV-CONFIG-UNSTABLE"


class ConfigError(DeviceFailure):
    """The device configuration is too short, or holds values that cannot be."""

    code = "UV-DEV-CONFIG"


class ProtocolError(DeviceFailure):
    """The device answered with something its type does not define."""

    code = "UV-DEV-PROTOCOL"


class RngUnhealthy(DeviceFailure):
    """An entropy device gives bytes that cannot be random."""

    code = "UV-DEV-RNG-HEALTH"


class PageMoved(DeviceFailure):
    """The physical address of a balloon page changed while the host was told about it."""

    code = "UV-DEV-PAGE-MOVED"


class MemRefusal(UvirtioError):
    """A memory device did not do what it was asked for (5.15.6); it works on.

    ``done`` is the number of blocks of the same call that were acknowledged before.
    """

    code = "UV-MEM"

    def __init__(
        self,
        message: str,
        *,
        seen: Any = None,
        expected: Any = None,
        remedy: str | None = None,
        done: int = 0,
    ) -> None:
        super().__init__(message, seen=seen, expected=expected, remedy=remedy)
        self.done = done


class MemNack(MemRefusal):
    """NACK: more than the host requests, or not now; trying again at once makes no sense."""

    code = "UV-MEM-NACK"


class MemBusy(MemRefusal):
    """BUSY: the device cannot do it now; try again later."""

    code = "UV-MEM-BUSY"


class MemError(MemRefusal):
    """ERROR: the device calls the request senseless."""

    code = "UV-MEM-ERROR"


class BlkRefusal(UvirtioError):
    """A block device did not carry out a request (5.2.6); it works on.

    What became of its single sectors or ranges is not known: all, some or none were carried out.
    """

    code = "UV-BLK"


class BlkIoError(BlkRefusal):
    """IOERR: the device, or what lies behind it, failed at this request."""

    code = "UV-BLK-IOERR"


class BlkUnsupported(BlkRefusal):
    """UNSUPP: the device does not know requests of this kind."""

    code = "UV-BLK-UNSUPP"


class ScsiRefusal(UvirtioError):
    """A SCSI device did not carry out a command or a task management function (5.6.6); it works on.

    ``response`` is what the transport said, ``key``, ``asc`` and ``ascq`` are those of the sense data; 0 where
    there are none. What a write did to its blocks is not known: all, some or none were written.
    """

    code = "UV-SCSI"

    def __init__(
        self, message: str, *, response: int = 0, sense: tuple[int, int, int] = (0, 0, 0), **details: Any
    ) -> None:
        super().__init__(message, **details)
        self.response = response
        self.key, self.asc, self.ascq = sense


class ScsiCheck(ScsiRefusal):
    """CHECK CONDITION: the logical unit refused or failed, and its sense data say why."""

    code = "UV-SCSI-CHECK"


class ScsiStatus(ScsiRefusal):
    """The logical unit ended a command with another status: busy, reserved, its task set full, or aborted."""

    code = "UV-SCSI-STATUS"


class ScsiTransport(ScsiRefusal):
    """A command did not reach its logical unit, or its answer not us: no such target, aborted, reset (5.6.6.1)."""

    code = "UV-SCSI-TRANSPORT"


class ScsiAnswer(ScsiRefusal):
    """The logical unit says GOOD, and its data are too short or make no sense."""

    code = "UV-SCSI-ANSWER"


class NetError(UvirtioError):
    """A network device did not do what it was asked for (5.1.6); it works on."""

    code = "UV-NET"


class NetRefused(NetError):
    """A command of the control queue was answered with ERR (5.1.6.5). ``about`` has its class and command."""

    code = "UV-NET-REFUSED"


class NetStalled(NetError, TimeoutError):
    """Frames were not taken in time: the other side does not read. ``sent`` is how many were accepted."""

    code = "UV-NET-STALLED"

    def __init__(
        self,
        message: str,
        *,
        seen: Any = None,
        expected: Any = None,
        remedy: str | None = None,
        sent: int = 0,
    ) -> None:
        super().__init__(message, seen=seen, expected=expected, remedy=remedy)
        self.sent = sent


class QueueFull(UvirtioError):
    """There are not enough free descriptors for this chain; reap first."""

    code = "UV-QUEUE-FULL"


class OperationFailed(UvirtioError):
    """An operation on this machine (a sysfs write, an ioctl) failed half-way and was rolled back."""

    code = "UV-OPERATION"


class Blocked(OperationFailed, TimeoutError):
    """A write to sysfs did not return in time. The kernel will finish it, we do not know when."""

    code = "UV-OPERATION-BLOCKED"


class AdminFailed(UvirtioError):
    """An administration command was answered with an error (2.12.1). ``seen`` has its status and qualifier."""

    code = "UV-ADMIN"


class Diverged(UvirtioError):
    """A replayed driver did something else than what was recorded; the message has the line of the record."""

    code = "UV-DIVERGED"


class Closed(UvirtioError):
    """The object was closed; it does nothing any more."""

    code = "UV-CLOSED"


# --- exit 2: usage ----------------------------------------------------------------------------------------


class UsageError(UvirtioError, ValueError):
    """The caller asked for something that makes no sense, whatever the device."""

    code = "UV-USAGE"
    exit_code = 2


class Misuse(UsageError):
    """A call that only a faulty program makes: an offset outside of a block, a queue without fixed slots.

    What a person can ask for, such as a size on a command line, raises the other usage errors.
    """

    code = "UV-USAGE-MISUSE"


class BadAddress(UsageError):
    """The address of a device has none of the known forms."""

    code = "UV-USAGE-ADDRESS"


class BadSize(UsageError):
    """A size is no number with a known unit, or is out of range."""

    code = "UV-USAGE-SIZE"


class BadTrace(UsageError):
    """A file is not the record of a device, or not a whole one; the message has the line."""

    code = "UV-USAGE-TRACE"


class NotPlugged(UsageError):
    """These bytes of a memory device's region are in blocks that are not plugged; nothing was touched."""

    code = "UV-USAGE-NOT-PLUGGED"


class BeyondEnd(UsageError):
    """These sectors reach past the capacity of the block device; nothing was sent."""

    code = "UV-USAGE-BEYOND-END"


class BadFrame(UsageError):
    """A frame is shorter or longer than one may be, or its offload header asks for what was not negotiated."""

    code = "UV-USAGE-FRAME"


class BadCapture(UsageError):
    """A file is no capture of Ethernet frames in the pcap format, or ends in the middle of a packet."""

    code = "UV-USAGE-CAPTURE"


class BadDump(UsageError):
    """A file that was given as a dump cannot be read; ``line`` and ``column`` (from 1, 0: unknown) are where."""

    code = "UV-USAGE-DUMP"

    def __init__(
        self,
        message: str,
        *,
        seen: Any = None,
        expected: Any = None,
        remedy: str | None = None,
        line: int = 0,
        column: int = 0,
    ) -> None:
        super().__init__(message, seen=seen, expected=expected, remedy=remedy)
        self.line = line
        self.column = column


class BadChain(UsageError):
    """A chain breaks a rule of 2.7.5: empty, too long, over 2^32 bytes, an address out of range."""

    code = "UV-USAGE-CHAIN"


# --- exit 3: refused by a rule ----------------------------------------------------------------------------


class Refused(UvirtioError):
    """A safety rule says no. Nothing was changed."""

    code = "UV-REFUSED"
    exit_code = 3


class Denied(Refused, PermissionError):
    """The administrator's deny list names this device."""

    code = "UV-REFUSED-DENIED"


class InUse(Refused):
    """The device does work for this machine; taking it away would hurt."""

    code = "UV-REFUSED-IN-USE"


class WriteRefused(Refused):
    """Writing was not allowed by the caller, or the device is read-only; nothing was sent."""

    code = "UV-REFUSED-WRITE"


class Busy(Refused):
    """Another process holds the device."""

    code = "UV-REFUSED-BUSY"


class Claimed(Refused):
    """Another program has set the device's driver_override since bind, so restore leaves the device to it."""

    code = "UV-REFUSED-CLAIMED"


class NotBound(Refused):
    """A kernel driver holds the device; it has to be bound to a user-space driver first."""

    code = "UV-REFUSED-NOT-BOUND"


class UnsafeDma(Refused):
    """No IOMMU holds this device, and the caller did not consent to that."""

    code = "UV-REFUSED-UNSAFE-DMA"


class ForeignWindow(Refused):
    """These addresses are not a virtio-mmio window of this machine; nothing was mapped."""

    code = "UV-REFUSED-WINDOW"


# --- exit 4: the environment lacks something --------------------------------------------------------------


class EnvironmentLack(UvirtioError):
    """Something has to be installed, loaded, enabled or permitted first."""

    code = "UV-ENV"
    exit_code = 4


class PermissionLack(EnvironmentLack, PermissionError):
    """This user may not do that."""

    code = "UV-ENV-PERMISSION"


class LimitReached(EnvironmentLack):
    """A limit of this process is too low: open files, address space, the size of a file (setrlimit(2))."""

    code = "UV-ENV-LIMIT"


class ModuleLack(EnvironmentLack):
    """A kernel module or option is not there."""

    code = "UV-ENV-MODULE"


class NoIommu(EnvironmentLack):
    """The function is in no IOMMU group."""

    code = "UV-ENV-IOMMU"


class GroupNotViable(EnvironmentLack):
    """Other functions of the IOMMU group are still held by kernel drivers."""

    code = "UV-ENV-GROUP"


class PagemapHidden(EnvironmentLack, PermissionError):
    """/proc/self/pagemap shows no frame numbers without CAP_SYS_ADMIN."""

    code = "UV-ENV-PAGEMAP"


class MemlockExceeded(EnvironmentLack):
    """RLIMIT_MEMLOCK is too small for the memory that has to be pinned."""

    code = "UV-ENV-MEMLOCK"


class MemoryScattered(EnvironmentLack):
    """No memory is at hand that is one run for the device, and a legacy queue has to lie in one (2.7.2)."""

    code = "UV-ENV-SCATTERED"


class HugePagesLack(EnvironmentLack):
    """The pool of huge pages has not as many left as memory without an IOMMU needs."""

    code = "UV-ENV-HUGEPAGES"


class QemuMissing(EnvironmentLack):
    """QEMU is not installed."""

    code = "UV-ENV-QEMU"


class QemuFailed(EnvironmentLack):
    """QEMU did not start, or said no."""

    code = "UV-ENV-QEMU-FAILED"


class NotSupported(EnvironmentLack):
    """This machine, kernel or build of Python cannot do that."""

    code = "UV-ENV-NOT-SUPPORTED"


# --- exit 5: no such device -------------------------------------------------------------------------------


class DeviceAbsent(UvirtioError):
    """There is no such device (any more)."""

    code = "UV-NODEV"
    exit_code = 5


class NoSuchDevice(DeviceAbsent, FileNotFoundError):
    """No device has this address or name."""

    code = "UV-NODEV-NONE"


class NotVirtio(DeviceAbsent):
    """There is a device, but it is no virtio device."""

    code = "UV-NODEV-NOT-VIRTIO"


class DeviceGone(DeviceAbsent):
    """The device was removed while it was in use. Every later call raises this again."""

    code = "UV-NODEV-GONE"
