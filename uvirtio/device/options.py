"""The options for opening a device, passed from ``uvirtio.open`` and the command line down to the back end."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from functools import wraps

from uvirtio.errors import UsageError
from uvirtio.host.pattern import Pattern
from uvirtio.host.roots import Roots
from uvirtio.interfaces.values import DEFAULT_TIMEOUT, TIMEOUT_MAX, InterruptMode, Trace
from uvirtio.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

    from uvirtio.device.keywords import OpenKeywords, RingChoice
    from uvirtio.interfaces.recording import Records, Replays

_RINGS = ("auto", "split", "packed")
"""What ``RingChoice`` allows."""


class OpenOptions(NamedTuple):
    """How to open a device, and what its driver may use.

    Raises:
        UsageError: An option has a value that it cannot have.
    """

    backend: str = "auto"
    """``vfio`` (``vfio-group``, ``vfio-cdev``), ``uio``, ``devmem``, ``vhost-vdpa``, ``vhost-user`` or ``qemu``;
    ``auto`` takes the one for the kernel driver that holds the device, or for the form of the address."""

    timeout: float = DEFAULT_TIMEOUT
    """Seconds that the device, or the program behind it, has for each response; calls that take ``timeout`` may
    override it."""

    interrupts: Sequence[InterruptMode] = tuple(InterruptMode)
    """The interrupt modes that may be used, best first; the first that works is taken."""

    ring: RingChoice = "auto"
    """The format of the virtqueues: packed where it is offered (``auto``), or one of the two."""

    poll_us: float = 0
    """Microseconds that a wait polls at most, with interrupts off, before it sleeps; 0: it does not poll."""

    force_legacy: bool = False
    """Use the legacy interface of a transitional PCI device, as the kernel's module parameter of that name does;
    otherwise the modern one is preferred (4.1.5.1.1.1)."""

    unsafe_dma: bool = False
    """Allow DMA that no IOMMU restricts: the device can then write to all of memory."""

    vf_token: str | None = None
    """The UUID that VFIO asks for where a function has SR-IOV (Documentation/driver-api/vfio.rst): a virtual
    function is opened with the one that was set when its physical function was opened."""

    without: Sequence[str] = ()
    """Feature bits that are not accepted although the driver knows them: names of the standard, or numbers."""

    roots: Roots = Roots()
    """Where ``/sys``, ``/proc``, ``/dev``, ``/run`` and ``/etc`` are read."""

    trace: Trace | None = None
    """Called with one line of text for every register access and kick."""

    record: str | os.PathLike[str] | Records | None = None
    """A file for a record of all that the device does (``uvirtio.trace``), or a ``uvirtio.trace.Recorder``."""

    replay: Replays | None = None
    """A ``uvirtio.trace.Replay`` that answers in place of the device at the address."""

    def merged(self, keywords: OpenKeywords) -> OpenOptions:
        """A copy of these options with some replaced.

        Args:
            keywords: The options to replace; ``roots=None`` leaves the roots as they are.

        Returns:
            The new options; these themselves where nothing is replaced.

        Raises:
            UsageError: An option has a value that it cannot have.
        """
        changes: dict[str, Any] = {**keywords}
        if changes.get("roots", self) is None:
            del changes["roots"]
        return OpenOptions(**{**self._asdict(), **changes}) if changes else self


_make: Callable[..., OpenOptions] = OpenOptions.__new__


@wraps(_make)
def _new(cls: type[OpenOptions], *given: Any, **named: Any) -> OpenOptions:
    return _checked(_make(cls, *given, **named))


def _of_values(cls: type[OpenOptions], values: Iterable[Any]) -> OpenOptions:
    return cls(*values)


# Which a NamedTuple cannot say in its body. ``_replace`` makes its copy by ``_make``.
OpenOptions.__new__ = _new  # type: ignore[method-assign,assignment]
OpenOptions._make = classmethod(_of_values)  # type: ignore[method-assign,assignment]


def _checked(given: OpenOptions) -> OpenOptions:
    """The options, with sequences that nothing changes any more.

    Raises:
        UsageError: An option has a value that it cannot have.
    """
    _check(given.backend, "backend", isinstance(given.backend, str), "the name of a back end, or 'auto'")
    clock = _number(given.timeout) and 0 < given.timeout <= TIMEOUT_MAX
    _check(given.timeout, "timeout", clock, f"seconds, above 0, at most {TIMEOUT_MAX:g}")
    modes = given.interrupts
    known = isinstance(modes, Sequence) and all(isinstance(mode, InterruptMode) for mode in modes)
    expected = "a list of one or more of " + ", ".join(map(str, InterruptMode))
    _check(modes, "interrupts", known and len(modes) > 0, expected)
    _check(given.ring, "ring", given.ring in _RINGS, " or ".join(map(repr, _RINGS)))
    _check(given.poll_us, "poll_us", _number(given.poll_us) and given.poll_us >= 0, "microseconds, 0 or more")
    _check(given.vf_token, "vf_token", given.vf_token is None or _is_uuid(given.vf_token), "a UUID, or None")
    words = isinstance(given.without, Sequence) and not isinstance(given.without, str)
    words = words and all(isinstance(word, str) for word in given.without)
    _check(given.without, "without", words, "a sequence of names of feature bits, such as ['EVENT_IDX']")
    _check(given.roots, "roots", isinstance(given.roots, Roots), "a uvirtio.Roots")
    _check(given.trace, "trace", given.trace is None or callable(given.trace), "a callable, or None")
    records = (
        given.record is None or isinstance(given.record, (str, os.PathLike)) or hasattr(given.record, "recorded")
    )
    _check(given.record, "record", records, "the name of a file, or a uvirtio.trace.Recorder")
    _check(
        given.replay, "replay", given.replay is None or hasattr(given.replay, "next_device"), "a Replay, or None"
    )
    return _make(type(given), **{**given._asdict(), "interrupts": tuple(modes), "without": tuple(given.without)})


_UUID = Pattern(r"(?ai)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""The one form that the kernel reads (uuid_parse)."""


def _is_uuid(value: object) -> bool:
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _check(value: object, name: str, good: bool, expected: str) -> None:
    if not good:
        raise UsageError(f"{name} cannot be {value!r}", seen=repr(value), expected=expected)
