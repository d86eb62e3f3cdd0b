"""vhost-vdpa: what its calls add to chapters 2 and 3 of the standard, which does not have them."""

from __future__ import annotations

from uvirtio.conform.row import Area, Level, V
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, rejected
from uvirtio.errors import OperationFailed
from uvirtio.spec import features as f
from uvirtio.spec.device_config import FIELDS
from uvirtio.spec.status import Status, describe

AREA = Area("vdpa", 77, "vhost-vdpa: what its calls add", transports=frozenset({V}))

_NEVER = (f.ADMIN_VQ, f.SR_IOV, f.NOTIFICATION_DATA, 49)
"""Bits that a parent device has no use for, of which one at least is never offered."""


@AREA.row(
    "D-VDPA-01",
    "2.2.2",
    "DESC",
    "The refusal of features shows in the status, or as an error of the call.",
    level=Level.REGISTERS,
)
def refusal_shows(t: Trial) -> Outcome:
    """One bit that was never offered is accepted; FEATURES_OK is written and read, and the device then reset."""
    bit = next(bit for bit in _NEVER if not f.has(t.offered, bit))
    try:
        status = t.negotiate(t.plain | f.mask(bit))
    except OperationFailed as error:
        return rejected(f"error of the call: {error}")
    t.expect(
        not status & Status.FEATURES_OK,
        f"status {describe(status)} with {f.feature(t.type, bit).name}, which was not offered",
        "an error, or a status without FEATURES_OK",
    )
    return rejected(f"status {describe(status)}")


@AREA.row(
    "D-VDPA-05",
    "2.5",
    "DESC",
    "The configuration is as long as the fields of the offered features.",
    level=Level.LOOK,
    types=frozenset(name for name, fields in FIELDS.items() if fields),
)
def configuration_is_long_enough(t: Trial) -> Outcome:
    """The size that the device reports, against the end of the last field of an offered feature."""
    ends = [(field.end, field.name) for field, bit in FIELDS[t.type] if bit is None or f.has(t.offered, bit)]
    t.need(bool(ends), "no field of the configuration is offered")
    end, name = max(ends)
    length = t.transport.config_length
    t.expect(length >= end, f"{length} bytes of configuration", f"at least {end}, as {name} is offered")
    return None
