"""The rows of ``uvirtio conform`` as tests: ``pytest --uvirtio-device ADDRESS``.

A row is a test whose id is the address and the row, such as ``qemu:virtio-rng-pci::D-RST-01``. It is imported when
the option is given, so that a run without one does not load it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import pytest

from uvirtio.conform import Result, Row, Verdict
from uvirtio.conform.run import Run
from uvirtio.conform.verdict import BAD
from uvirtio.errors import UvirtioError

_LINES: Final = 60
"""Lines of the log that the report of a failure has, the last ones."""


class NotConforming(Exception):
    """The device does not do what a row says, or the test of the row could not be made."""

    def __init__(self, result: Result) -> None:
        """Make it of a result whose verdict is bad."""
        super().__init__(f"{result.row.id} {result.verdict.value}: {result.seen}")
        self.result = result


class DeviceRows(pytest.Collector):
    """The rows that fit a device; it is open while their tests run."""

    def __init__(self, *, address: str, **keywords: Any) -> None:
        """Note the address."""
        super().__init__(**keywords)
        self.address = address
        self.run: Run | None = None

    def collect(self) -> Iterable[pytest.Item]:
        """Open the device to see what it is, and close it again."""
        try:
            with Run(self.address) as run:
                rows = run.rows
        except UvirtioError as error:
            raise self.CollectError(_about(error)) from error
        return [RowItem.from_parent(self, name=row.id, nodeid=f"{self.nodeid}::{row.id}", row=row) for row in rows]

    def setup(self) -> None:
        """Open the device, before the first of its rows."""
        try:
            self.run = Run(self.address)
        except UvirtioError as error:
            pytest.fail(_about(error), pytrace=False)

    def teardown(self) -> None:
        """Close the device, behind the last of its rows."""
        run, self.run = self.run, None
        if run is not None:
            run.close()


class RowItem(pytest.Item):
    """The test of one row."""

    def __init__(self, *, row: Row, **keywords: Any) -> None:
        """Note the row."""
        super().__init__(**keywords)
        self.row = row

    def runtest(self) -> None:
        """Make the test; a known violation is an expected failure, and one that does not show is unexpected."""
        rows = self.parent
        assert isinstance(rows, DeviceRows) and rows.run is not None
        result = rows.run.test(self.row)
        self.user_properties.append(("uvirtio_verdict", result.verdict.value))
        if result.verdict is Verdict.SKIP:
            pytest.skip(result.seen)
        if result.verdict is Verdict.KNOWN:
            pytest.xfail(f"known: {result.seen}")
        if result.verdict is Verdict.FIXED:
            self.add_marker(pytest.mark.xfail(reason=result.seen))
        if result.verdict in BAD:
            if result.log:
                self.add_report_section("call", "uvirtio log", "\n".join(result.log[-_LINES:]))
            raise NotConforming(result)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Say what the row asks for and what the device did, instead of a traceback into the battery."""
        if not isinstance(excinfo.value, NotConforming):
            return super().repr_failure(excinfo, style)
        return "\n".join(_told(excinfo.value.result))

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Where it is, and its title."""
        return self.path, None, f"{self.row.id}: {self.row.title}"


def _about(error: UvirtioError) -> str:
    told = {"seen": error.seen, "expected": error.expected, "remedy": error.remedy}
    return "\n".join([f"{error.code}: {error}", *(f"  {name}: {what}" for name, what in told.items() if what)])


def _told(result: Result) -> Iterator[str]:
    row = result.row
    yield f"virtio 1.4, {row.section}, {row.keyword}: {row.title}"
    yield f"how:      {row.how}"
    yield f"verdict:  {result.verdict.value}" + (f" ({result.severity.value})" if result.severity else "")
    yield f"seen:     {result.seen}"
    if result.expected:
        yield f"expected: {result.expected}"


def of(session: pytest.Session, address: str) -> Iterator[pytest.Item]:
    """The tests of a device; one that cannot be opened is an error of the collection.

    Args:
        session: The session that they become part of.
        address: The device's.
    """
    return session.genitems(DeviceRows.from_parent(session, name=address, nodeid=address, address=address))
