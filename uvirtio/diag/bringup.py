"""The diagnosis: bring a device up, and report what each step found.

The steps are those of the initialisation sequence itself (``Device.start``), observed from outside, so that a
diagnosis does exactly what a driver does. Then come the data path of the type, the interrupt, a configuration
change where one can be triggered, and the shutdown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Unpack

from uvirtio import device as dev
from uvirtio import opening
from uvirtio.device import storm
from uvirtio.diag import causes, datapath, words
from uvirtio.diag.beside import Beside, View
from uvirtio.diag.causes import Cause
from uvirtio.diag.report import VIEW, Report, Step, Verdict
from uvirtio.errors import DeviceAbsent, DeviceFailure, EnvironmentLack, UvirtioError, shortened
from uvirtio.interfaces.backend import Backend, WithoutIommu
from uvirtio.interfaces.values import InterruptMode
from uvirtio.spec import features as f
from uvirtio.spec import field_bits
from uvirtio.spec import input as input_spec
from uvirtio.spec.status import describe

STEPS = {
    "discover": "4.1.2, 4.2.1",
    "capabilities": "4.1.4, 4.2.2",
    "reset": "2.4",
    "acknowledge": "3.1.1 (2)",
    "driver": "3.1.1 (3)",
    "features": "3.1.1 (4), 2.2",
    "features_ok": "3.1.1 (5, 6)",
    "queues": "3.1.1 (7), 2.6",
    "vectors": "4.1.5.1.2, 4.2.3.4",
    "queue_enable": "4.1.5.1.3, 4.2.3.2",
    "driver_ok": "3.1.1 (8)",
    "data path": "5",
    "interrupt": "2.3, 4.1.5.3",
    "configuration change": "2.5, 4.1.5.4",
    "reset again": "2.4.2",
    "leave": "3.3",
}
"""The steps in their order, with their sections of the standard."""

OnStep = Callable[[Step], None]


def steps_of(beside: Beside | None) -> dict[str, str]:
    """The steps of a diagnosis in their order: the view of a QEMU, where one is asked, before the last two."""
    if beside is None:
        return STEPS
    last = ("reset again", "leave")
    return {name: spec for name, spec in STEPS.items() if name not in last} | {
        VIEW: "QMP",
        **{name: STEPS[name] for name in last},
    }


def diagnose(
    address: str | Backend,
    *,
    options: dev.OpenOptions | None = None,
    on_step: OnStep | None = None,
    opened: Callable[[dev.Device], None] | None = None,
    examine: Callable[[dev.Device], None] | None = None,
    beside: Beside | None = None,
    intrusive: bool = False,
    **keywords: Unpack[dev.OpenKeywords],
) -> Report:
    """Bring a device up step by step, try its data path, and leave it.

    Args:
        address: The address of the device, or what a back end opened, as for ``uvirtio.open``.
        options: How to open it, as for ``uvirtio.open``.
        on_step: Called with each step as it ends.
        opened: Called with the open device, for signal handlers to interrupt.
        examine: Called with the device as the last step before its reset left it, live or failed.
        beside: The QEMU that has the device: its view is compared in a step of its own; None: there is none.
        intrusive: Whether the data path may do what others see, or are cut off by (docs/probes.md); with a device
            of a machine of our own it always does.
        **keywords: Single options, as for ``uvirtio.open``.

    Returns:
        The report, which has every error of the device.

    Raises:
        UsageError: An option has a value that it cannot have.
    """
    options = opening.chosen(options, keywords)
    name = address if isinstance(address, str) else address.address
    return diagnose_function(
        name,
        lambda: opening.open_function(address, options=options),
        options=options,
        on_step=on_step,
        opened=opened,
        examine=examine,
        beside=beside,
        intrusive=intrusive,
    )


def diagnose_function(
    address: str,
    open_function: Callable[[], tuple[str, Backend]],
    *,
    options: dev.OpenOptions | None = None,
    on_step: OnStep | None = None,
    opened: Callable[[dev.Device], None] | None = None,
    examine: Callable[[dev.Device], None] | None = None,
    beside: Beside | None = None,
    intrusive: bool = False,
    **keywords: Unpack[dev.OpenKeywords],
) -> Report:
    """Do what ``diagnose`` does, with a function that the caller opens.

    Args:
        address: What the report calls the device until it is open.
        open_function: Returns the address and what a back end opened; its errors go into the report.
        options: As for ``diagnose``.
        on_step: As for ``diagnose``.
        opened: As for ``diagnose``.
        examine: As for ``diagnose``.
        beside: As for ``diagnose``.
        intrusive: As for ``diagnose``.
        **keywords: As for ``diagnose``.

    Returns:
        The report.

    Raises:
        UsageError: An option has a value that it cannot have.
    """
    options = opening.chosen(options, keywords)
    diagnosis = _Diagnosis(address, on_step, beside, intrusive)
    report = diagnosis.report
    try:
        with diagnosis.step("discover") as note:
            report.address, function = open_function()
            note.detail = f"{function.address}: {function.description}"
            diagnosis.words = words.of(function.bus)
            diagnosis.found = causes.machine(function)
            if isinstance(function, WithoutIommu):
                note.warn(function.warning)
        with diagnosis.step("capabilities") as note:
            device = opening.identify(report.address, function, options=options)
            diagnosis.device = device
            report.type = device.type
            _tell_capabilities(device, note)
    except UvirtioError as error:
        report.error = error
        diagnosis.skip_rest("the device could not be opened")
        return report
    with device:
        if opened is not None:
            opened(device)
        diagnosis.bring_up(device, examine)
    return report


_HINT = "the log of the device or its host may say why; uvirtio diag -v shows every register access"


class _Note:
    """The result of a step, filled in while it runs."""

    def __init__(self) -> None:
        self.verdict: Verdict = "pass"
        self.detail = ""
        self.hint = ""
        self.cause: Cause | None = None
        self.data: dict[str, Any] = {}

    def warn(self, hint: str, cause: str | None = None, *evidence: str) -> None:
        """Set the verdict to ``warn``, with a hint; ``cause``: the id of what the hint says."""
        self.verdict, self.hint = "warn", hint
        if cause is not None:
            self.cause = Cause(cause, hint, evidence)

    def fail(self, cause: Cause) -> None:
        """Set the verdict to ``fail``, with its cause."""
        self.verdict, self.cause = "fail", cause
        self.hint = "; ".join(cause.attempts)

    def skip(self, detail: str) -> None:
        """Set the verdict to ``skip``, with the reason."""
        self.verdict, self.detail = "skip", detail


class _Diagnosis:
    """One diagnosis: the report so far, and the steps that add to it."""

    def __init__(self, address: str, on_step: OnStep | None, beside: Beside | None, intrusive: bool) -> None:
        self.report = Report(address)
        self._beside = beside
        self._intrusive = intrusive
        self._steps = steps_of(beside)
        self.words = words.of_address(address)
        self.device: dev.Device | None = None
        self.found: tuple[str, ...] = ()
        """What PCI configuration space said when the function was found."""
        self._on_step = on_step

    def add(self, name: str, note: _Note, took: float) -> None:
        """Add a finished step to the report, and pass it to ``on_step``.

        Args:
            name: The step, one of ``STEPS``.
            note: Its result.
            took: Seconds that it took.
        """
        place = self.words.places.get(name, self._steps[name])
        step = Step(name, note.verdict, place, took, note.detail, note.hint, note.cause, note.data)
        self.report.steps.append(step)
        if self._on_step is not None:
            self._on_step(step)

    def skip_rest(self, why: str) -> None:
        """Add every step that is not in the report yet as skipped, with the reason."""
        done = {step.name for step in self.report.steps}
        for name in self._steps:
            if name not in done:
                note = _Note()
                note.skip(why)
                self.add(name, note, 0.0)

    @contextmanager
    def step(self, name: str) -> Iterator[_Note]:
        """Run one step: time it, and record a failure as its verdict before the error propagates.

        Args:
            name: The step, one of ``STEPS``.

        Yields:
            The result to fill in.
        """
        note = _Note()
        started = time.monotonic()
        try:
            yield note
        except UvirtioError as error:
            note.detail = _failure(error)
            cause = causes.of_error(error, self.device, self.found)
            if cause is None:
                text = error.message.replace(shortened(self.report.address), "the device")
                cause = Cause(error.about or error.code.removeprefix("UV-").lower(), text, causes.seen(error))
            note.fail(cause)
            note.hint = note.hint or error.remedy or _HINT
            if self.device is not None and self.device.queues:
                note.data["queues"] = [one.as_dict() for one in causes.queues(self.device)]
            self.add(name, note, time.monotonic() - started)
            raise
        self.add(name, note, time.monotonic() - started)

    def bring_up(self, device: dev.Device, examine: Callable[[dev.Device], None] | None = None) -> None:
        """Run all steps from the reset on, and leave the device; errors go into the report.

        Args:
            device: The open device, which is closed at the end.
            examine: Called before the device is reset and left.
        """
        path = datapath.for_device(device, intrusive=self._intrusive)
        try:
            path.start(self._observer(device))
            with self.step("data path") as note:
                self._data_path(device, path, note)
            with self.step("interrupt") as note:
                _tell_interrupts(device, note)
            with self.step("configuration change") as note:
                _tell_change(path, note)
        except UvirtioError as error:
            self.report.error = error
            self._skip_to("reset again" if self._beside is None else VIEW)
        if self._beside is not None:
            self._compare(device, self._beside)
        if examine is not None:
            examine(device)
        self._leave(device)

    def _data_path(self, device: dev.Device, path: datapath.DataPath, note: _Note) -> None:
        try:
            outcome = path.exercise()
            device.check()
        except EnvironmentLack as error:
            note.warn(error.remedy or "", error.code.removeprefix("UV-").lower(), _failure(error))
            note.detail = _failure(error)
            return
        note.detail = outcome.detail
        if outcome.skipped:
            note.verdict = "skip"
        note.data["queues"] = [one.as_dict() for one in causes.queues(device)]
        odd = [outcome.suspicious] * bool(outcome.suspicious) + _ring_oddities(device)
        if odd:
            note.warn("; ".join(odd), outcome.cause if outcome.suspicious else "ring")

    def _compare(self, device: dev.Device, beside: Beside) -> None:
        """Compare with what QEMU says; that it cannot be asked is no failure of the device."""
        note = _Note()
        started = time.monotonic()
        if isinstance(device.broken, DeviceAbsent) or not device.queues:
            note.skip("the device is not running any more")
        else:
            path = next((step for step in self.report.steps if step.name == "data path"), None)
            awaited = path is not None and path.verdict in ("warn", "fail")
            try:
                self.report.view = view = beside.look(device, awaited=awaited)
            except UvirtioError as error:
                note.detail = _failure(error)
                note.warn(error.remedy or "", "view")
            else:
                _tell_view(view, note)
        self.add(VIEW, note, time.monotonic() - started)

    def _observer(self, device: dev.Device) -> dev.Observer:
        @contextmanager
        def observe(name: str) -> Iterator[None]:
            with self.step(name) as note:
                yield
                _TELL[name](device, note)

        return observe

    def _skip_to(self, last: str) -> None:
        done = {step.name for step in self.report.steps}
        for name in self._steps:
            if name == last:
                return
            if name not in done:
                note = _Note()
                note.skip("an earlier step failed")
                self.add(name, note, 0.0)

    def _leave(self, device: dev.Device) -> None:
        try:
            with self.step("reset again") as note:
                device.stop()
                failed = device.broken
                if failed is not None and (failed is not self.report.error or isinstance(failed, DeviceAbsent)):
                    raise failed
                status = device.transport.status()
                note.detail = f"status {describe(status)}" + f"; {self.words.reset}" * bool(self.words.reset)
                if status:
                    raise DeviceFailure("the device is not reset", seen=describe(status), expected="status 0")
            with self.step("leave") as note:
                device.close()
                note.detail = self.words.leave
        except UvirtioError as error:
            self.report.error = self.report.error or error
            self.skip_rest("the device could not be reset")


def _ring_oddities(device: dev.Device) -> list[str]:
    """What the rings show against the standard although buffers went out and came back."""
    odd = []
    for queue in device.queues.values():
        # QEMU's input devices report the bytes that they read (hw/input/virtio-input.c): known, and harmless.
        known = device.device_id == input_spec.TYPE and queue.ring.overclaimed == input_spec.EVENT_SIZE
        odd += [f"{queue.name}: {name}, {count} times" for name, count in queue.ring.findings.items() if not known]
        flags = queue.ring.words().get("used.flags", 0)
        if flags and device.has(f.EVENT_IDX):
            odd.append(f"{queue.name}: used.flags is {flags:#x} with EVENT_IDX negotiated, not 0 (2.7.10.2)")
    return odd


def _failure(error: UvirtioError) -> str:
    text = f"{error.code}: {error.message}"
    if error.seen is not None:
        text += f"; seen: {error.seen}"
    if error.expected is not None:
        text += f"; expected: {error.expected}"
    return text


# --- what each step read ------------------------------------------------------------------------------------


def _tell_capabilities(device: dev.Device, note: _Note) -> None:
    transport = device.transport
    note.detail = f"{device.type} (device id {device.device_id}); {transport.interface}"
    if transport.quirks:
        note.warn("; ".join(transport.quirks), "capabilities")
    note.data["interface"] = transport.interface


def _words(device: dev.Device) -> words.Words:
    return words.of(device.transport.backend.bus)


def _tell_status(device: dev.Device, note: _Note) -> None:
    status = device.transport.status()
    note.detail = f"status {describe(status)}"
    note.data["status"] = status


def _tell_reset(device: dev.Device, note: _Note) -> None:
    _tell_status(device, note)
    if said := _words(device).reset:
        note.detail += f"; {said}"


def _tell_features_ok(device: dev.Device, note: _Note) -> None:
    if device.transport.legacy:
        note.skip("the legacy interface has no such step (3.1.2)")
    else:
        _tell_status(device, note)


def _tell_features(device: dev.Device, note: _Note) -> None:
    taken = ", ".join(bit.name for bit in f.names(device.type, device.features))
    left = ", ".join(bit.name for bit in f.names(device.type, device.offered & ~device.features))
    note.detail = f"offered {device.offered:#x}, taken {device.features:#x}: {taken}; declined: {left or 'none'}"
    if device.unsteady_features:
        names = ", ".join(bit.name for bit in f.names(device.type, device.unsteady_features))
        note.warn(
            f"{causes.OFFER_CHANGES}: {names} came or went", "offer-changes", f"{device.unsteady_features:#x}"
        )
    unknown = f.bits(device.offered & ~f.known(device.type))
    if unknown and device.type in f.DEVICE_BITS:
        bits = ", ".join(field_bits.described(device.type, number) for number in unknown)
        note.warn(f"the device offers bits that the standard does not define: {bits}; they are not negotiated")
    note.data.update(
        offered=device.offered,
        wanted=device.wanted,
        accepted=device.features,
        declined=device.offered & ~device.features,
        unknown=unknown,
    )


def _tell_queues(device: dev.Device, note: _Note) -> None:
    policy = "IOVAs (ACCESS_PLATFORM)" if device.dma.translated else "guest-physical addresses"
    count = device.transport.num_queues
    sizes = [f"#{index} holds {device.transport.queue_layout(index).size_max}" for index in range(min(count, 16))]
    note.detail = f"{count} queue{'s' * (count != 1)}{': ' * bool(count)}{', '.join(sizes)}; {policy}"
    note.data["num_queues"] = count


def _tell_vectors(device: dev.Device, note: _Note) -> None:
    mode = device.transport.interrupt_mode
    said = "" if mode is InterruptMode.POLLING else _words(device).vectors
    note.detail = f"{said} ({mode.value})" if said else mode.value
    note.data["interrupts"] = mode.value
    failures = device.transport.interrupt_failures
    if failures:
        note.warn(f"{'; '.join(failures)}: {mode.value} is used instead (4.1.5.1.2.2)", "vectors", *failures)
    elif mode is InterruptMode.POLLING and InterruptMode.INTX in device.interrupts:
        note.warn("no kind of interrupt works, so the device is polled", "no-interrupts")


def _tell_enabled(device: dev.Device, note: _Note) -> None:
    used = ", ".join(f"{queue.name} ({queue.ring.size})" for queue in device.queues.values())
    note.detail = f"enabled: {used or 'no queue'}"
    note.data["queues"] = [one.as_dict() for one in causes.queues(device)]


def _tell_interrupts(device: dev.Device, note: _Note) -> None:
    if device.transport.interrupt_mode is InterruptMode.POLLING:
        note.skip("the device is polled")
        return
    if not any(queue.completions for queue in device.queues.values()):
        note.skip("the device had no buffer to return, so no interrupt is due")
        return
    patience = min(1.0, device.timeout)
    device.wait(lambda: device.counters.interrupts_taken > 0, timeout=patience, what="an interrupt", owed=False)
    note.detail = f"{device.counters.interrupts_taken} taken ({device.transport.interrupt_mode.value})"
    if device.counters.missed_interrupts:
        note.detail += f", {device.counters.missed_interrupts} missed"
    if not device.counters.interrupts_taken:
        note.fail(
            Cause(
                "interrupts-lost",
                "the device returns buffers and its interrupts do not arrive",
                (
                    f"{device.transport.interrupt_mode.value}: none in {patience:g} s",
                    *causes.machine(device.transport.backend),
                ),
                (_words(device).interrupts,),
            )
        )
    elif _storms(device):
        note.warn(_words(device).storm, "storm")
    elif device.counters.missed_interrupts:
        note.warn("some completions came without an interrupt; only polling found them", "interrupts-lost")


def _storms(device: dev.Device) -> bool:
    """Whether interrupts keep coming with nothing to do."""
    for _ in range(2 * storm.LIMIT):
        device.service()
        if not device.interrupted:
            return False
    return True


def _tell_change(path: datapath.DataPath, note: _Note) -> None:
    outcome = path.change_configuration()
    if outcome is None:
        note.skip("no way to trigger one from here")
        return
    note.detail = outcome.detail
    if outcome.suspicious:
        note.warn(outcome.suspicious, "config-change")


def _tell_view(view: View, note: _Note) -> None:
    note.detail = str(view)
    if not view.disagreements:
        note.detail += "; it agrees with the driver"
        return
    worst, *rest = view.disagreements
    others = tuple(f"{one.text} ({'; '.join(one.evidence)})" for one in rest)
    note.fail(Cause(worst.id, worst.text, (*worst.evidence, *others), worst.attempts))


_TELL: dict[str, Callable[[dev.Device, _Note], None]] = {
    "reset": _tell_reset,
    "acknowledge": _tell_status,
    "driver": _tell_status,
    "features": _tell_features,
    "features_ok": _tell_features_ok,
    "queues": _tell_queues,
    "vectors": _tell_vectors,
    "queue_enable": _tell_enabled,
    "driver_ok": _tell_status,
}
