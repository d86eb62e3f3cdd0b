"""Which feature bits make a device fail: found by resets, each with fewer or more of the bits accepted.

Two questions are asked this way. FEATURES_OK does not stick: which accepted bit, which pair, or which bit that was
declined? Or the data path does not work: which accepted bit breaks it?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

from uvirtio import opening
from uvirtio.device import Device, OpenKeywords, OpenOptions
from uvirtio.diag.bringup import diagnose
from uvirtio.diag.report import Report
from uvirtio.spec import features as f
from uvirtio.spec.status import Status

Blame = Literal["accepted", "together", "declined", "none"]
"""``accepted``: one bit fails when it is accepted. ``together``: two fail only together. ``declined``: one must be
accepted. ``none``: no bit makes a difference."""


@dataclass(frozen=True, slots=True)
class Bisection:
    """Which bits are to blame for a failure, and how that was found."""

    step: str
    """The step of the diagnosis that failed: ``features_ok`` or ``data path``."""
    blame: Blame
    bits: tuple[int, ...]
    """The guilty bits, by number."""
    names: tuple[str, ...]
    """Their names."""
    probes: int
    """How many combinations were tried; each begins with a reset."""

    @property
    def text(self) -> str:
        """One line for people."""
        names = " and ".join(self.names)
        says = {
            "accepted": f"{names} is to blame: without it the step passes (--without {names})",
            "together": f"{names} fail together: without one of them the step passes",
            "declined": f"{names} has to be accepted: with it the step passes, and this driver declines it",
            "none": "no feature bit makes a difference: the step fails with all, and with as few as there can be",
        }
        return f"{self.step}: {says[self.blame]} ({self.probes} reset{'s' * (self.probes != 1)})"

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return {
            "step": self.step,
            "blame": self.blame,
            "bits": [*self.bits],
            "names": [*self.names],
            "probes": self.probes,
        }


def bisect(
    address: str,
    report: Report,
    *,
    options: OpenOptions | None = None,
    opened: Callable[[Device], None] | None = None,
    **keywords: Unpack[OpenKeywords],
) -> Bisection | None:
    """Find the feature bits that made a diagnosis fail.

    Args:
        address: The address of the device, which is opened again.
        report: The diagnosis that failed.
        options: How to open the device, as for ``uvirtio.open``.
        opened: Called with the device each time that it is open with buffers, for signal handlers to interrupt.
        **keywords: Single options, as for ``uvirtio.open``.

    Returns:
        The bits; None where the diagnosis failed in a step that feature bits do not decide.

    Raises:
        UvirtioError: The device cannot be opened or reset any more.
    """
    options = opening.chosen(options, keywords)
    failed = next((step.name for step in report.steps if step.verdict == "fail"), None)
    if failed == "features_ok":
        with opening.open(address, options=options) as device:
            return _Negotiation(device, report).blame()
    if failed in ("data path", "interrupt"):
        return _DataPath(address, report, options, failed, opened).blame()
    return None


class _Search:
    """A search over the bits that may be left out; ``fails`` says whether a choice of them fails."""

    def __init__(self, optional: Sequence[int], fails: Callable[[Sequence[int]], bool]) -> None:
        self._optional = optional
        self._fails = fails
        self.probes = 0

    def fails(self, bits: Sequence[int]) -> bool:
        """Try one choice of bits; whether it fails."""
        self.probes += 1
        return self._fails(bits)

    def guilty(self) -> tuple[int, ...]:
        """The bits that fail together, where all of them fail and none of them passes: one, or two."""
        last = self._shortest([])
        bit = self._optional[last]
        if last == 0 or self.fails([bit]):
            return (bit,)
        partner = self._shortest([bit], last)
        return (self._optional[partner], bit)

    def needed(self) -> int:
        """The first bit in whose company the rest passes, where none of them fails and all of them pass."""
        low, high = 0, len(self._optional)
        while high - low > 1:
            middle = (low + high) // 2
            if self.fails(self._optional[:middle]):
                low = middle
            else:
                high = middle
        return self._optional[high - 1]

    def _shortest(self, beside: list[int], end: int | None = None) -> int:
        """The index of the last bit of the shortest row that fails, by halving."""
        low, high = 0, len(self._optional) if end is None else end
        while high - low > 1:
            middle = (low + high) // 2
            if self.fails([*self._optional[:middle], *beside]):
                high = middle
            else:
                low = middle
        return high - 1


class _Negotiation:
    """FEATURES_OK, asked of the open device itself: one reset for each choice of bits."""

    def __init__(self, device: Device, report: Report) -> None:
        self._device = device
        taken, self._offered = _negotiated(report)
        self._base = f.mask(f.VERSION_1) & taken
        self._taken = f.bits(taken & ~self._base)
        self._declined = f.bits(self._offered & ~taken)

    def _fails(self, bits: Sequence[int]) -> bool:
        device = self._device
        device.reset()
        transport = device.transport
        for status in (Status.ACKNOWLEDGE, Status.ACKNOWLEDGE | Status.DRIVER):
            transport.set_status(int(status))
        word = f.resolve(self._offered, self._base | f.mask(*bits), f.dependencies(device.type))
        transport.set_driver_features(word)
        transport.set_status(int(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK))
        return not transport.status() & Status.FEATURES_OK

    def blame(self) -> Bisection:
        """Find the bits that FEATURES_OK depends on."""
        search = _Search(self._taken, self._fails)
        try:
            if self._taken and not search.fails([]):
                return self._found("accepted", search.guilty(), search.probes)
            rest = _Search(self._declined, lambda bits: self._fails([*self._taken, *bits]))
            rest.probes = search.probes
            if self._declined and not rest.fails(self._declined):
                return self._found("declined", (rest.needed(),), rest.probes)
            return self._found("none", (), rest.probes)
        finally:
            self._device.reset()

    def _found(self, blame: Blame, bits: tuple[int, ...], probes: int) -> Bisection:
        return _bisection("features_ok", blame, bits, self._device.type, probes)


class _DataPath:
    """The data path, tried by a whole diagnosis for each choice of bits."""

    def __init__(
        self,
        address: str,
        report: Report,
        options: OpenOptions,
        failed: str,
        opened: Callable[[Device], None] | None,
    ) -> None:
        self._address = address
        self._options = options
        self._failed = failed
        self._opened = opened
        self._type = report.type
        taken, _ = _negotiated(report)
        self._taken = f.bits(taken & ~f.mask(f.VERSION_1))

    def _fails(self, bits: Sequence[int]) -> bool:
        left = [str(bit) for bit in self._taken if bit not in bits]
        without = (*self._options.without, *left)
        again = diagnose(self._address, options=self._options.merged({"without": without}), opened=self._opened)
        return again.verdict == "fail"

    def blame(self) -> Bisection:
        """Find the accepted bits that break the step."""
        search = _Search(self._taken, self._fails)
        if not self._taken or search.fails([]):
            return _bisection(self._failed, "none", (), self._type, search.probes)
        return _bisection(self._failed, "accepted", search.guilty(), self._type, search.probes)


def _negotiated(report: Report) -> tuple[int, int]:
    """The accepted and the offered feature word of a diagnosis."""
    told = next(step.data for step in report.steps if "accepted" in step.data)
    return int(told["accepted"]), int(told["offered"])


def _bisection(step: str, blame: Blame, bits: tuple[int, ...], type_name: str, probes: int) -> Bisection:
    names = tuple(f.feature(type_name, bit).name for bit in bits)
    return Bisection(step, "together" if len(bits) > 1 else blame, tuple(sorted(bits)), names, probes)
