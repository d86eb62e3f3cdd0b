"""From the symptom to the cause: what a failed or odd step says about the device, in one line for a colleague.

Each cause has an id that stays, so that runs can be compared and tests can name it; the evidence that splits it
from its neighbours; and what to try next. ``docs/diag.md`` has the table of faults and causes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from uvirtio.device import Device
from uvirtio.device.evidence import QueueEvidence, of_queue
from uvirtio.diag import words
from uvirtio.errors import (
    CapabilityError,
    ConfigError,
    ConfigUnstable,
    DeviceGone,
    DeviceNeedsReset,
    DeviceResetByOther,
    DeviceTimeout,
    FeatureMissing,
    FeaturesRefused,
    QueueError,
    ResetTimeout,
    RingCorruption,
    UvirtioError,
)
from uvirtio.interfaces.backend import Backend, PciFunction
from uvirtio.spec import features as f
from uvirtio.spec import pci
from uvirtio.spec.status import Status, describe


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a step failed, or why it is odd."""

    id: str
    """Its name, which stays: ``queue-untaken``, ``features-refused`` ..."""
    text: str
    """One line for people."""
    evidence: tuple[str, ...] = ()
    """What was seen that shows it."""
    attempts: tuple[str, ...] = ()
    """What to try next."""

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return {"id": self.id, "text": self.text, "evidence": [*self.evidence], "try": [*self.attempts]}


def of_error(error: UvirtioError, device: Device | None, before: tuple[str, ...] = ()) -> Cause | None:
    """The cause of an error that ended a step; None where the error itself says it all.

    Args:
        error: What was raised.
        device: The device, in the state in which the step left it; None where it was not opened.
        before: What ``machine`` said of the function when it was found.
    """
    if isinstance(error, DeviceGone):
        return _gone(error, before if device is None else machine(device.transport.backend))
    if isinstance(error, CapabilityError):
        return Cause("capabilities", error.message, seen(error))
    if device is None:
        return None
    for kind, find in _BY_ERROR:
        if isinstance(error, kind):
            return find(error, device)
    return None


def seen(error: UvirtioError) -> tuple[str, ...]:
    """What an error says was seen, as evidence."""
    return () if error.seen is None else (f"seen: {error.seen}",)


def queues(device: Device) -> list[QueueEvidence]:
    """What every queue of the device shows."""
    return [found for queue in device.queues.values() if (found := of_queue(queue)) is not None]


# --- status and features ----------------------------------------------------------------------------------------


def _reset(error: UvirtioError, device: Device) -> Cause:
    status = device.transport.status()
    stuck = Status(status & (Status.DEVICE_NEEDS_RESET | Status.FAILED))
    # A function-level reset that came after the error leaves 0 here: then the error alone knows what was read.
    evidence = (
        (f"device_status reads {status:#04x} ({describe(status)}) after 0 was written",) if status else seen(error)
    )
    if stuck and status == stuck:
        text = f"device_status keeps {describe(status)} set, which a reset has to clear (2.4.1)"
        return Cause("status-stuck", text, evidence, ("does the device compute this bit from something live?",))
    return Cause(
        "reset-hangs",
        "the device does not finish its reset: device_status never reads 0 (2.4.2)",
        evidence,
        ("does the device wait for something of its own?", *(() if error.remedy is None else (error.remedy,))),
    )


def _refused(error: UvirtioError, device: Device) -> Cause:
    taken, declined = device.features, device.offered & ~device.features
    may = taken & ~f.mask(f.VERSION_1)
    names = _names(device, may)
    evidence = [f"accepted {taken:#x}: {_names(device, taken)}"]
    attempts = []
    if may:
        attempts.append(f"withhold one at a time (--without NAME), or let --bisect find it: {names}")
    if declined:
        evidence.append(f"offered and declined: {_names(device, declined)}")
    refused = f"it refuses one of {names}, or their combination" if may else "it refuses VERSION_1 alone"
    wanted = f"; or it demands one that was declined: {_names(device, declined)}" if declined else ""
    return Cause(
        "features-refused",
        f"the device cleared FEATURES_OK: {refused}{wanted} (3.1.1)",
        tuple(evidence),
        tuple(attempts),
    )


def _missing(error: UvirtioError, device: Device) -> Cause:
    if error.about == "offer":
        return Cause("offer-changes", OFFER_CHANGES, seen(error))
    return Cause("feature-missing", error.message, seen(error))


OFFER_CHANGES = "the device offers other features at each reading of device_feature (2.2)"


def _names(device: Device, word: int) -> str:
    return ", ".join(bit.name for bit in f.names(device.type, word)) or "none"


def _needs_reset(error: UvirtioError, device: Device) -> Cause:
    given = [one for one in queues(device) if one.published]
    last = "; ".join(str(one) for one in given) or "it had been given no buffer"
    bits = device.transport.status()
    if bits & Status.DEVICE_NEEDS_RESET or not bits & Status.DRIVER_OK:
        return Cause(
            "needs-reset",
            f"the device gave up {'after' if given else 'before'} it was given a buffer: "
            "it set DEVICE_NEEDS_RESET, or cleared DRIVER_OK",
            (f"device_status reads {bits:#04x} ({describe(bits)})", last),
            ("its own log, or its host's, says why",),
        )
    return Cause("failed", error.message, (last,))


def _reset_by_other(error: UvirtioError, device: Device) -> Cause:
    return Cause("reset-by-other", "device_status reads 0, and this process did not write that", seen(error))


# --- configuration ----------------------------------------------------------------------------------------------


def _unstable(error: UvirtioError, device: Device) -> Cause:
    return Cause(
        "generation-unstable",
        "config_generation is another one at every read, so no field can be trusted (2.5.1, 4.1.4.3.1)",
        seen(error),
        ("the generation may change only when a field of the device's configuration does",),
    )


def _config(error: UvirtioError, device: Device) -> Cause:
    return Cause("config", error.message, seen(error))


# --- queues -----------------------------------------------------------------------------------------------------

_QUEUE_CAUSES = {
    "queue_size": ("queue-size", "queue_size does not take the size that the driver writes (4.1.4.3)"),
    "queue_size 0": ("queue-missing", "queue_size reads 0: the device does not have a queue that its type has"),
    "queue_size first": ("queue-size", "queue_size reads a size that the ring format does not allow"),
    "num_queues": ("queue-missing", "num_queues is smaller than the number of queues that the type has"),
    "queue_enable": ("queue-enable", "the queue does not become enabled: queue_enable does not read back 1"),
    "queue_enable before": ("queue-enabled", "the queue is enabled already, right after a reset (4.1.4.3.1)"),
    "queue_notify_off": ("doorbell", "queue_notify_off puts the doorbell outside of its structure (4.1.4.4.1)"),
    "queue_msix_vector": ("vectors", "queue_msix_vector does not read back what was written (4.1.5.1.2)"),
}


def _queue(error: UvirtioError, device: Device) -> Cause:
    about = error.about or ""
    if about in ("queue_desc", "queue_driver", "queue_device", "queue_address"):
        return Cause(
            "queue-address",
            f"{about} does not keep the address that the driver writes: {_kept_bits(error)}",
            seen(error),
            ("is the register 64 bits wide, and written in two halves (4.1.3.1)?",),
        )
    ident, text = _QUEUE_CAUSES.get(about, ("queue", error.message))
    return Cause(ident, text, (error.message, *seen(error)))


def _kept_bits(error: UvirtioError) -> str:
    try:
        read = int(str(error.seen), 16)
        wrote = int(str(error.expected).partition(" ")[0], 16)
    except ValueError:
        return str(error.seen)
    lost = wrote & ~read
    return f"bits {lost:#x} are lost" if lost and not read & ~wrote else f"it reads {read:#x} after {wrote:#x}"


# --- rings ------------------------------------------------------------------------------------------------------

STALLS = {
    "suppressed": (
        "kick-suppressed",
        "the device asks for no kick ({event}) and does not look at the ring by itself",
        "avail_event, or used.flags, must move on when the device wants to hear of the next buffer (2.7.10)",
    ),
    "untaken": (
        "queue-untaken",
        "the device was kicked and has not taken the buffer: the kick or the ring does not reach it, or it waits",
        "",  # it differs by the way in: ``Words.untaken``
    ),
    "kept": (
        "queue-kept",
        "the device took the buffer and does not return it: it does not carry the request out, or not to its end",
        "its own log, or its host's, says what it waits for",
    ),
    "silent": (
        "queue-silent",
        "the device was kicked and no buffer comes back; without EVENT_IDX the ring does not show more",
        "with EVENT_IDX offered, diag can tell a lost kick from a request that is not carried out",
    ),
}
"""How a queue keeps its buffers: the id of the cause, its text, and what to try."""


def _timeout(error: UvirtioError, device: Device) -> Cause:
    found = queues(device)
    owed = {index: queue.spec.owed for index, queue in device.queues.items()}
    stuck = [
        one
        for one in found
        if one.in_flight and one.stall in STALLS and (owed[one.index] or one.stall not in ("kept", "silent"))
    ]
    stuck.sort(key=lambda one: not owed[one.index])
    if not stuck:
        return Cause("timeout", error.message, tuple(str(one) for one in found))
    worst = stuck[0]
    ident, text, attempt = STALLS[worst.stall]
    names = ("avail_event", "used.flags", "device event flags")
    event = ", ".join(f"{name} {worst.words[name]}" for name in names if name in worst.words)
    return Cause(
        ident,
        f"{worst.name}: " + text.format(event=event),
        (*(str(one) for one in stuck), _addresses(worst), *machine(device.transport.backend)),
        (attempt or words.of(device.transport.backend.bus).untaken,),
    )


def _addresses(queue: QueueEvidence) -> str:
    desc, driver, given = queue.addresses
    places = f"descriptors {desc:#x}, driver area {driver:#x}, device area {given:#x}"
    return f"{queue.size} entries, {queue.format}: {places}"


_RING_CAUSES = {
    "used-id": "the device returns a buffer that it was not given: {message}",
    "used-idx": "the used index is not one that can be: {message}",
    "used-len": "the device claims to have written more than the buffer holds: {message}",
}


def _ring(error: UvirtioError, device: Device) -> Cause:
    ident = error.about or "ring"
    text = _RING_CAUSES.get(ident, "{message}").format(message=error.message)
    return Cause(ident, text, (*seen(error), *(f"{one}" for one in queues(device))))


# --- a device that reads all ones -------------------------------------------------------------------------------


_BACK_END_CAUSES = {
    "back-end-ended": "the back end's process has ended: {seen}",
    "back-end-closed": "the back end closed the connection, and no end of its process is seen: {seen}",
}


def _gone(error: UvirtioError, shown: tuple[str, ...]) -> Cause:
    if error.about in _BACK_END_CAUSES:
        text = _BACK_END_CAUSES[error.about].format(seen=error.seen)
        return Cause(error.about, text, seen(error), () if error.remedy is None else (error.remedy,))
    if any("memory decoding off" in line for line in shown):
        return Cause(
            "memory-decode",
            "every register reads ones because memory decoding is off in the PCI command register",
            shown,
            ("what turned it off? vfio-pci turns it on when the function is opened",),
        )
    asleep = next((line for line in shown if line.startswith("power state")), None)
    if asleep is not None:
        return Cause(
            "power-state",
            f"every register reads ones because the function is in {asleep}",
            shown,
            ("what put it to sleep? its power/control in sysfs, and `lspci -vv`, tell",),
        )
    return Cause(
        "gone",
        f"the device does not answer any more: {error.seen}",
        (*seen(error), *shown),
        () if error.remedy is None else (error.remedy,),
    )


def machine(backend: Backend) -> tuple[str, ...]:
    """What PCI configuration space says of a function that does not work: decoding, bus mastering, power.

    Args:
        backend: What a back end opened.

    Returns:
        Lines for people; empty where it is not a PCI function, or does not let itself be read.
    """
    if backend.bus != "pci":
        return ()
    function: PciFunction = backend
    try:
        command = function.config.read16(pci.CFG_COMMAND)
        if command == 0xFFFF:
            return ("PCI configuration space reads ones: the function itself is gone",)
        state = _power_state(function)
    except UvirtioError:
        return ()
    lines = [
        f"PCI command {command:#06x}: memory decoding {'on' if command & pci.Command.MEMORY else 'off'}, "
        f"bus master {'on' if command & pci.Command.MASTER else 'off'}"
    ]
    if state:
        lines.append(f"power state D{state}")
    return tuple(lines)


def _power_state(function: PciFunction) -> int:
    at = function.config.read8(pci.CFG_CAPABILITIES_POINTER) & ~3
    for _ in range(48):  # a list that does not end is the capability walk's concern
        if at < 0x40 or at > 0xFC:
            return 0
        if function.config.read8(at) == pci.CapId.PM:
            return function.config.read16(at + 4) & 3
        at = function.config.read8(at + pci.CAP_NEXT) & ~3
    return 0


_BY_ERROR = (
    (ResetTimeout, _reset),
    (FeaturesRefused, _refused),
    (FeatureMissing, _missing),
    (ConfigUnstable, _unstable),
    (ConfigError, _config),
    (QueueError, _queue),
    (DeviceTimeout, _timeout),
    (RingCorruption, _ring),
    (DeviceNeedsReset, _needs_reset),
    (DeviceResetByOther, _reset_by_other),
)
"""Subclasses before their bases."""
