"""What one test has opened: its devices and machines, closed at its end, and the trace of their registers.

Nothing here knows pytest. It is imported when a fixture is first used, so that a run without one does not load it.
"""

from __future__ import annotations

import json
import time
from collections import deque
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, Unpack

import uvirtio
from uvirtio import scripted
from uvirtio.device import Device, OpenKeywords, OpenOptions
from uvirtio.device.evidence import of_queue
from uvirtio.errors import UvirtioError
from uvirtio.host.roots import Roots
from uvirtio.interfaces.backend import Backend
from uvirtio.interfaces.clock import KeepsTime
from uvirtio.interfaces.values import Trace
from uvirtio.pytest_plugin.lab import LabVm
from uvirtio.qemu import Machine, QemuFunction
from uvirtio.scripted.address import PREFIX, build

HOSTILE_TIMEOUT: Final = 0.2
"""Seconds that a hostile device has for each response; a device in this process needs none."""

_LINES: Final = 100_000
"""Lines of trace that are kept, the last ones."""

_TRACE, _DEVICES, _DUMP, _VM = "trace.txt", "devices.txt", "dump.json", "vm.txt"


class Bench:
    """The devices and machines of one test, and what is kept of them if it fails."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._begin = time.monotonic()
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._devices: list[Device] = []
        self._machines: list[Machine] = []
        self._scripted: list[tuple[scripted.ScriptedCore, bool]] = []
        self._vms: list[LabVm] = []
        self._dump: dict[str, Any] | None = None
        self._dumping = False

    # --- what fixtures return ---------------------------------------------------------------------------------

    def open(
        self, address: str | Backend, options: OpenOptions | None, keywords: OpenKeywords, *, hostile: bool = False
    ) -> Device:
        """Open a device, traced; it is closed with the bench.

        Args:
            address: As for ``uvirtio.open``.
            options: As for ``uvirtio.open``.
            keywords: As for ``uvirtio.open``.
            hostile: Whether closing it may fail.
        """
        if isinstance(address, QemuFunction) and address.closed:
            address.reopen()  # as Machine.open does: a machine may outlive its tests
        device = uvirtio.open(address, options=options, **self._traced(_name(address), options, keywords))
        self._devices.append(device)
        self._stack.callback(_close_hostile if hostile else Device.close, device)
        return device

    def machine(self, devices: tuple[str, ...], machine: str, keywords: dict[str, Any]) -> Machine:
        """Start a QEMU whose devices are traced; it ends with the bench, after they were closed."""
        made = self._stack.enter_context(_TracedMachine(self, machine, devices, **keywords))
        self._machines.append(made)
        return made

    def scripted(self, what: str | scripted.Model, check: bool, keywords: dict[str, Any]) -> scripted.ScriptedCore:
        """Make a scripted device; ``check``: the driver has to obey the standard until the bench is closed."""
        if isinstance(what, str):
            device = build(what if what.startswith(PREFIX) else PREFIX + what)
        else:
            device = scripted.ScriptedDevice(what, **keywords)
        self._scripted.append((device, check))
        return device

    def vm(self, program: Path, devices: tuple[str, ...], files: Path, keywords: dict[str, Any]) -> LabVm:
        """Boot a lab VM; it ends with the bench."""
        made = self._stack.enter_context(LabVm(program, devices, files, **keywords))
        self._vms.append(made)
        return made

    # --- trace ------------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        self._lines.append(f"{time.monotonic() - self._begin:10.6f} {text}")

    def _traced(self, name: str, options: OpenOptions | None, keywords: OpenKeywords) -> OpenKeywords:
        given: Trace | None = keywords.get("trace", options.trace if options is not None else None)
        note = self.note

        def trace(line: str) -> None:
            if self._dumping:
                return
            note(f"{name}: {line}")
            if given is not None:
                given(line)

        return {**keywords, "trace": trace}

    # --- the end ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close everything, the last first; idempotent.

        Raises:
            AssertionError: The driver broke a rule of the standard on a scripted device.
            UvirtioError: A device could not be left in order.
        """
        if any(check and device.violations for device, check in self._scripted):
            self._look()
        self._stack.close()
        for device, check in self._scripted:
            if check:
                device.assert_obedient()

    def write(self, folder: Path) -> None:
        """Write what is known of a failed test: the trace, a dump, and each device and machine at this moment.

        Args:
            folder: Where to; made if it is not there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        about = [line for device in self._devices for line in _about(device)]
        about += [repr(machine) for machine in self._machines]
        for device, _ in self._scripted:
            about += [f"{device.address}: the driver broke a rule: {one}" for one in device.violations]
        _write(folder / _DEVICES, about)
        _write(folder / _TRACE, list(self._lines))
        if self._vms:
            _write(folder / _VM, [text for vm in self._vms for text in (repr(vm), *vm.history, vm.console())])
        self._look()
        if self._dump is not None:
            _write(folder / _DUMP, [json.dumps(self._dump, indent=1)])

    def _look(self) -> None:
        """Make the dump, masked, of the devices that are open, the first time that there are any.

        It reads registers of devices that are in any state: what cannot be read is said in the dump.
        """
        # A record holds what the test did, and nothing else.
        open_ = [device for device in self._devices if device.state != "closed"]
        devices = [device for device in open_ if not isinstance(device.transport.backend, KeepsTime)]
        if self._dump is not None or not devices:
            return
        from uvirtio.evidence import collect  # here: tests that pass do without it
        from uvirtio.evidence.mask import masked

        self._dumping = True
        try:
            records = [collect.of_open(device, live=bool(device.queues)) for device in devices]
            self._dump = masked(collect.document(records, collect.environment(Roots(), devices[0])))
        except (UvirtioError, ValueError) as error:  # closed meanwhile, by another thread
            self.note(f"there is no dump: {error}")
        finally:
            self._dumping = False

    @property
    def used(self) -> bool:
        """Whether the test opened anything."""
        return bool(self._devices or self._machines or self._scripted or self._vms or self._lines)


class _TracedMachine(Machine):
    """A Machine whose ``open`` traces, and whose devices are closed before it."""

    def __init__(self, bench: Bench, machine: str, devices: tuple[str, ...], **keywords: Any) -> None:
        self._bench = bench
        super().__init__(machine, devices, **keywords)

    def open(
        self,
        which: QemuFunction | int = 0,
        *,
        options: OpenOptions | None = None,
        **keywords: Unpack[OpenKeywords],
    ) -> Device:
        """Open one of the devices, traced; otherwise as ``Machine.open``."""
        bench = self._bench
        traced = bench._traced(self.function(which).id, options, keywords)
        device = super().open(which, options=options, **traced)
        bench._devices.append(device)
        bench._stack.callback(device.close)
        return device


def forget(folder: Path) -> None:
    """Remove what an earlier run has kept of a test."""
    for name in (_TRACE, _DEVICES, _DUMP, _VM):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # it was not there, or holds more
        folder.rmdir()


def _name(address: str | Backend) -> str:
    return address if isinstance(address, str) else address.address


def _close_hostile(device: Device) -> None:
    with suppress(UvirtioError):  # a device that does not reset is one of the cases
        device.close()


def _about(device: Device) -> list[str]:
    lines = [repr(device)]
    if device.broken is not None:
        lines.append(f"  unusable since: {device.broken.code}: {device.broken}; seen: {device.broken.seen}")
    found = [of_queue(queue) for queue in device.queues.values()] or device.queues_left
    lines += [f"  {one}" for one in found if one is not None]
    lines.append(f"  {device.counters}")
    return lines


def _write(path: Path, lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
