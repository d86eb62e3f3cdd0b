"""Bring-up in steps: does the device work, and if not, which step fails?

The steps are those of the initialisation sequence itself (``Device.start``), watched from outside, so that a
diagnosis goes exactly the way that a driver goes. Then the data path of the type, the interrupt, a change of
the configuration where one can be triggered, and the shutdown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from uvirtio import device as dev
from uvirtio import opening
from uvirtio.device import storm
from uvirtio.diag import datapath
from uvirtio.diag.report import Report, Step, Verdict
from uvirtio.errors import DeviceAbsent, DeviceFailure, EnvironmentLack, UvirtioError
from uvirtio.host.roots import Roots
from uvirtio.interfaces.backend import WithoutIommu
from uvirtio.interfaces.values import InterruptMode
from uvirtio.memory.trace import Trace
from uvirtio.spec import features as f
from uvirtio.spec.status import describe

__all__ = ["STEPS", "Report", "Step", "diagnose"]

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
    "driver_ok": "3.1.1 (8)",
    "data path": "5",
    "interrupt": "2.3, 4.1.5.3",
    "configuration change": "2.5, 4.1.5.4",
    "reset again": "2.4.2",
    "leave": "3.3",
}
"""The steps in their order, with their sections of the standard."""

OnStep = Callable[[Step], None]


def diagnose(
    address: str,
    *,
    timeout: float = dev.DEFAULT_TIMEOUT,
    backend: str = "auto",
    unsafe_dma: bool = False,
    interrupts: Sequence[InterruptMode] = tuple(InterruptMode),
    ring: dev.RingChoice = "auto",
    force_legacy: bool = False,
    roots: Roots | None = None,
    trace: Trace | None = None,
    on_step: OnStep | None = None,
    opened: Callable[[dev.Device], None] | None = None,
) -> Report:
    """Bring the device up step by step; returns the report and raises nothing that a device can cause.

    ``on_step`` gets each step as it ends; ``opened`` gets the device, for signal handlers to interrupt.
    """
    return diagnose_function(
        address,
        lambda: opening.open_function(
            address, backend=backend, timeout=timeout, unsafe_dma=unsafe_dma, roots=roots
        ),
        timeout=timeout,
        interrupts=interrupts,
        ring=ring,
        force_legacy=force_legacy,
        trace=trace,
        on_step=on_step,
        opened=opened,
    )


def diagnose_function(
    address: str,
    open_function: Callable[[], tuple[str, opening.Opened]],
    *,
    timeout: float = dev.DEFAULT_TIMEOUT,
    interrupts: Sequence[InterruptMode] = tuple(InterruptMode),
    ring: dev.RingChoice = "auto",
    force_legacy: bool = False,
    trace: Trace | None = None,
    on_step: OnStep | None = None,
    opened: Callable[[dev.Device], None] | None = None,
) -> Report:
    """:func:`diagnose` for a function that the caller opens."""
    run = _Run(address, on_step)
    try:
        with run.step("discover") as note:
            run.report.address, function = open_function()
            note.detail = f"{function.address}: {function.description}"
            if isinstance(function, WithoutIommu):
                note.warn(function.warning)
        with run.step("capabilities") as note:
            device = opening.identify(
                run.report.address,
                function,
                timeout=timeout,
                interrupts=interrupts,
                ring=ring,
                force_legacy=force_legacy,
                trace=trace,
            )
            run.report.type = device.type
            _tell_capabilities(device, note)
    except UvirtioError as error:
        run.report.error = error
        run.skip_rest("the device could not be opened")
        return run.report
    with device:
        if opened is not None:
            opened(device)
        run.bring_up(device)
    return run.report


_HINT = "the log of the device or its host may say why; uvirtio diag -v shows every register access"


class _Note:
    """The result of a step, while it runs."""

    def __init__(self) -> None:
        self.verdict: Verdict = "pass"
        self.detail = ""
        self.hint = ""

    def warn(self, hint: str) -> None:
        self.verdict, self.hint = "warn", hint

    def skip(self, detail: str) -> None:
        self.verdict, self.detail = "skip", detail


class _Run:
    def __init__(self, address: str, on_step: OnStep | None) -> None:
        self.report = Report(address)
        self._on_step = on_step

    def add(self, name: str, note: _Note, took: float) -> None:
        step = Step(name, note.verdict, STEPS[name], took, note.detail, note.hint)
        self.report.steps.append(step)
        if self._on_step is not None:
            self._on_step(step)

    def skip_rest(self, why: str) -> None:
        done = {step.name for step in self.report.steps}
        for name in STEPS:
            if name not in done:
                note = _Note()
                note.skip(why)
                self.add(name, note, 0.0)

    @contextmanager
    def step(self, name: str) -> Iterator[_Note]:
        """One step: timed, and a failure inside becomes its verdict before it goes on up."""
        note = _Note()
        started = time.monotonic()
        try:
            yield note
        except UvirtioError as error:
            note.verdict = "fail"
            note.detail = _failure(error)
            note.hint = error.remedy or _HINT
            self.add(name, note, time.monotonic() - started)
            raise
        self.add(name, note, time.monotonic() - started)

    def bring_up(self, device: dev.Device) -> None:
        path = datapath.for_device(device)
        try:
            path.start(self._observer(device))
            with self.step("data path") as note:
                self._data_path(path, note)
            with self.step("interrupt") as note:
                _tell_interrupts(device, note)
            with self.step("configuration change") as note:
                _tell_change(path, note)
        except UvirtioError as error:
            self.report.error = error
            self._skip_to("reset again")
        self._leave(device)

    def _data_path(self, path: datapath.DataPath, note: _Note) -> None:
        try:
            outcome = path.exercise()
        except EnvironmentLack as error:
            note.warn(error.remedy or "")
            note.detail = _failure(error)
            return
        note.detail = outcome.detail
        if outcome.skipped:
            note.verdict = "skip"
        elif outcome.suspicious:
            note.warn(outcome.suspicious)

    def _observer(self, device: dev.Device) -> dev.Observer:
        @contextmanager
        def observe(name: str) -> Iterator[None]:
            with self.step(name) as note:
                yield
                _TELL[name](device, note)

        return observe

    def _skip_to(self, last: str) -> None:
        done = {step.name for step in self.report.steps}
        for name in STEPS:
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
                note.detail = f"status {describe(status)}"
                if status:
                    raise DeviceFailure("the device is not reset", seen=describe(status), expected="status 0")
            with self.step("leave") as note:
                device.close()
                note.detail = "bus master off, interrupts off, memory freed, function closed"
        except UvirtioError as error:
            self.report.error = self.report.error or error
            self.skip_rest("the device could not be reset")


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
        note.warn("; ".join(transport.quirks))


def _tell_status(device: dev.Device, note: _Note) -> None:
    note.detail = f"status {describe(device.transport.status())}"


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
        note.warn(f"the offered features change between two reads: {device.unsteady_features:#x}")
    unknown = f.bits(device.offered & ~f.known(device.type))
    if unknown and device.type in f.DEVICE_BITS:
        note.warn(f"the device offers bits that the standard does not define: {unknown}; they are not negotiated")


def _tell_queues(device: dev.Device, note: _Note) -> None:
    policy = "IOVAs (ACCESS_PLATFORM)" if device.dma.translated else "guest-physical addresses"
    count = device.transport.num_queues
    sizes = [f"#{index} holds {device.transport.queue_layout(index).size_max}" for index in range(min(count, 16))]
    note.detail = f"{count} queue{'s' * (count != 1)}{': ' * bool(count)}{', '.join(sizes)}; {policy}"


def _tell_vectors(device: dev.Device, note: _Note) -> None:
    mode = device.transport.interrupt_mode
    used = ", ".join(f"{queue.name} ({queue.ring.size})" for queue in device.queues.values())
    note.detail = f"{mode.value}; enabled: {used or 'no queue'}"
    if mode is InterruptMode.POLLING and InterruptMode.INTX in device.interrupts:
        note.warn("no kind of interrupt works, so the device is polled")


def _tell_interrupts(device: dev.Device, note: _Note) -> None:
    if device.transport.interrupt_mode is InterruptMode.POLLING:
        note.skip("the device is polled")
        return
    if not any(queue.completions for queue in device.queues.values()):
        note.skip("the device had no buffer to return, so no interrupt is due")
        return
    device.wait(lambda: device.counters.interrupts_taken > 0, timeout=1.0, what="an interrupt", owed=False)
    note.detail = f"{device.counters.interrupts_taken} taken ({device.transport.interrupt_mode.value})"
    if device.counters.missed_interrupts:
        note.detail += f", {device.counters.missed_interrupts} missed"
    if not device.counters.interrupts_taken:
        note.verdict = "fail"
        note.hint = "completions arrive, interrupts do not: check MSI-X, INTx routing and interrupt remapping"
    elif _storms(device):
        note.warn("spurious interrupts do not stop: check the interrupt line, and what shares it")
    elif device.counters.missed_interrupts:
        note.warn("some completions came without an interrupt; only polling found them")


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
        note.warn(outcome.suspicious)


_TELL: dict[str, Callable[[dev.Device, _Note], None]] = {
    "reset": _tell_status,
    "acknowledge": _tell_status,
    "driver": _tell_status,
    "features": _tell_features,
    "features_ok": _tell_features_ok,
    "queues": _tell_queues,
    "vectors": _tell_vectors,
    "driver_ok": _tell_status,
}
