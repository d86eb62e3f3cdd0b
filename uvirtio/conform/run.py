"""A run: the rows that fit a device, in the order of their levels, each inside the frame."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from uvirtio import opening
from uvirtio.conform import battery
from uvirtio.conform.exchange import FAULTS, SERVED, WRITTEN, Exchange
from uvirtio.conform.frame import Bench, Source
from uvirtio.conform.implementation import Implementation, of
from uvirtio.conform.quirks import Quirk, all_quirks
from uvirtio.conform.quirks import of as of_device
from uvirtio.conform.report import Report
from uvirtio.conform.result import Result
from uvirtio.conform.row import LETTERS, Level, Row, U, V
from uvirtio.conform.trial import Consent, Pace
from uvirtio.conform.verdict import FAILURES, Verdict
from uvirtio.device import Device, OpenOptions
from uvirtio.errors import UvirtioError
from uvirtio.host.addresses import MADE
from uvirtio.scripted import ScriptedCore
from uvirtio.spec import features as f

WHOLE_DISK: Final = range(1 << 55)

_SCRIPTED: Final = Pace(deadline=0.05, watch=0.0, reset=0.05)
"""A scripted device answers inside the register access."""


def run(
    device: Source,
    *,
    rows: Sequence[Row] | None = None,
    options: OpenOptions | None = None,
    consent: Consent | None = None,
    request: type[Exchange] | None = None,
    pace: Pace | None = None,
    seed: int | None = None,
    implementation: Implementation | None = None,
    quirks: Sequence[Quirk] | None = None,
    on_result: Callable[[Result], None] = lambda result: None,
    on_device: Callable[[Report, int], None] = lambda report, count: None,
    opened: Callable[[Device | None], None] = lambda device: None,
    check: Callable[[], None] = lambda: None,
) -> Report:
    """Test whether a device does what virtio 1.4 demands of devices.

    Args:
        device: Its address; what a back end opened; or a function that opens it anew, each time that it is called,
            which is what lets the run go on after a test that the device does not survive.
        rows: The rows (``battery.chosen``); None: all. Those of other types and transports are left out.
        options: How to open it; ``ring="packed"`` sends requests over packed rings.
        consent: What may be done to it; None: everything where the device is made for this run (``qemu:`` and
            ``scripted:`` addresses, and functions that make one), else nothing of it.
        request: The good request of a device whose type has none here, or another than its type's: the rows for
            all types that have one are made then, too.
        pace: How long to wait; None: a second for what the device owes.
        seed: Shuffles the rows within their levels; None: the order of the standard.
        implementation: What implements the device; None: what can be found out.
        quirks: The violations that are known; None: those of this package.
        on_result: Called with each result as it comes.
        on_device: Called once the device is known, with the empty report and the number of rows.
        opened: Called with each device that is opened, and with None when it is closed.
        check: Called in each wait; what it raises ends the run.

    Returns:
        The results.

    Raises:
        UvirtioError: The device cannot be opened, as from ``uvirtio.open``.
    """
    with Run(
        device,
        rows=rows,
        options=options,
        consent=consent,
        request=request,
        pace=pace,
        seed=seed,
        implementation=implementation,
        quirks=quirks,
        opened=opened,
        check=check,
    ) as started:
        on_device(started.report, len(started.rows))
        for row in started.rows:
            on_result(started.test(row))
    return started.report


class Run:
    """A run whose rows are tested one by one, by whoever calls; a context manager, which closes the device."""

    def __init__(
        self,
        device: Source,
        *,
        rows: Sequence[Row] | None = None,
        options: OpenOptions | None = None,
        consent: Consent | None = None,
        request: type[Exchange] | None = None,
        pace: Pace | None = None,
        seed: int | None = None,
        implementation: Implementation | None = None,
        quirks: Sequence[Quirk] | None = None,
        opened: Callable[[Device | None], None] = lambda device: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the device, and choose the rows that fit it; the parameters are those of ``run``.

        Raises:
            UvirtioError: The device cannot be opened, as from ``uvirtio.open``.
        """
        options = opening.chosen(options, {})
        renewable = callable(device) or (isinstance(device, str) and device.startswith(MADE))
        if consent is None:
            consent = made_for_this(device) if renewable else Consent()
        self._bench = Bench(
            device,
            options,
            pace or Pace(),
            renewable=renewable,
            consent=consent,
            request=request,
            opened=opened,
            check=check,
        )
        try:
            found = self._bench.device
            if pace is None and isinstance(found.transport.backend, ScriptedCore):
                self._bench.pace = _SCRIPTED
            self.report = _about(found, options, implementation or of(found), seed)
            """The results so far."""
            known = all_quirks(self.report.implementation) if quirks is None else quirks
            self._known = quirks_of(self.report, known)
            chosen = battery.all_rows() if rows is None else rows
            fitting = [row for row in chosen if _fits(row, found, own=request is not None)]
            self.rows: Sequence[Row] = _ordered(fitting, seed)
            """The rows that fit the device, in the order of their tests."""
        except BaseException:
            self._bench.close()
            raise

    def test(self, row: Row) -> Result:
        """Make the test of a row, and add what it came to to the report.

        Args:
            row: One of ``rows``.
        """
        result = _one(self._bench, row, self._known.get(row.id))
        self.report.results.append(result)
        self.report.stopped = self._bench.dead
        return result

    def known(self, row: Row) -> Quirk | None:
        """What is known of a row on this device.

        Args:
            row: One of ``rows``.
        """
        return self._known.get(row.id)

    def close(self) -> None:
        """Close the device; idempotent."""
        self._bench.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def made_for_this(device: Source) -> Consent:
    """All that may be done to a device that is made for this run; a disk that the caller named is not written.

    Args:
        device: What is opened.
    """
    named = isinstance(device, str) and ("drive=" in device or "file=" in device)
    return Consent(faults=True, host=True, flr=True, write=None if named else WHOLE_DISK)


def _about(device: Device, options: OpenOptions, implementation: Implementation, seed: int | None) -> Report:
    transport = device.transport
    offered = transport.device_features()
    packed = options.ring == "packed" and f.has(offered, f.RING_PACKED)
    return Report(
        address=device.address,
        type=device.type,
        transport=transport.kind,
        ring="packed" if packed else "split",
        implementation=implementation.name,
        version=implementation.version,
        offered=offered,
        seed=seed,
    )


def _fits(row: Row, device: Device, *, own: bool) -> bool:
    of_requests = own and row.types in (SERVED, WRITTEN, FAULTS)
    return LETTERS[device.transport.kind] in row.transports and (row.fits_type(device.type) or of_requests)


def _ordered(rows: Sequence[Row], seed: int | None) -> list[Row]:
    found = list(rows)
    if seed is not None:
        random.Random(seed).shuffle(found)
    return sorted(found, key=lambda row: row.level)


def quirks_of(report: Report, quirks: Sequence[Quirk]) -> dict[str, Quirk]:
    """The quirks of the device of a report, by row.

    Args:
        report: With its implementation.
        quirks: All that are known.
    """
    implementation = Implementation(report.implementation, report.version)
    letter = LETTERS[report.transport]
    return of_device(quirks, implementation, report.type, letter, report.ring, report.offered)


def _one(bench: Bench, row: Row, quirk: Quirk | None) -> Result:
    if bench.dead is not None:
        return Result(row, Verdict.SKIP, bench.dead)
    if quirk is not None and quirk.expect == "skip":
        return Result(row, Verdict.SKIP, f"known: {quirk.seen}")
    try:
        reason = withheld(row, bench)
        if reason is not None:
            return Result(row, Verdict.SKIP, reason)
        return judged(bench.run(row), quirk)
    except UvirtioError as error:
        # Between the tests: the device could not be opened again.
        bench.dead = str(error)
        return Result(row, Verdict.ERROR, str(error))


def judged(result: Result, quirk: Quirk | None) -> Result:
    """A result in the light of what is known: a failure that was foretold, or one that was and did not come.

    Args:
        result: As the test has it.
        quirk: What is known of this row; None: nothing.
    """
    if quirk is None:
        return result
    if quirk.foretells(result.verdict.value, result.kind):
        return replace(result, verdict=Verdict.KNOWN)
    if result.verdict in FAILURES or result.verdict in (Verdict.SKIP, Verdict.ERROR):
        return result  # it was not foretold, or not like this
    return replace(result, verdict=Verdict.FIXED, seen=f"{result.seen}; known was: {quirk.seen}".lstrip("; "))


def withheld(row: Row, bench: Bench) -> str | None:
    """Why a test is not made without consent; None: it may be.

    Args:
        row: The row.
        bench: The device.
    """
    consent, transport = bench.consent, bench.device.transport
    if row.level >= Level.REGISTERS:
        if not consent.faults:
            return f"L{row.level.value} is forbidden input, which needs --faults"
        if not bench.renewable and LETTERS[transport.kind] in (V, U):
            return f"L{row.level.value} is never tried on a device whose back end others may share"
        if row.level is Level.RINGS and not bench.renewable and not transport.translates:
            return "L4 is never tried without an IOMMU: a wrong address would be somebody's memory"
    if "write" in row.needs and consent.write is None:
        return "it writes to the disk, which needs --allow-write"
    if "host" in row.needs and not consent.host:
        return "it pulls a lever of the device's host, which needs --host"
    if "flr" in row.needs and not consent.flr:
        return "it resets the function, which needs --flr"
    return None
