"""2.5 and 3.2.1: the device configuration, its generation, and notifications of its changes."""

from __future__ import annotations

from typing import Final

from uvirtio.conform.row import ANY, M1, M2, Area, L, Level, P, U
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity
from uvirtio.spec import features as f
from uvirtio.spec.device_config import FIELDS
from uvirtio.spec.layout import Field

AREA = Area("config", 25, "2.5, 3.2.1: the device configuration", transports=ANY)

_WRITABLE: Final = {
    "blk": ("writeback",),
    "balloon": ("actual", "poison_val"),
    "input": ("select", "subsel", "size"),
    "scsi": ("sense_size", "cdb_size"),
    "net": ("mac", "status"),
}
"""Fields that a driver may write, or that follow one; by type."""

_LATE: Final = ("writeback",)
"""Fields that a driver reads only after FEATURES_OK (5.2.5.1)."""

_COUNTING: Final = frozenset({P, M2, U})


def _fields(t: Trial, *, dependent: bool | None = None) -> list[Field]:
    """The fields of the offered features, within the configuration; those that depend on one, or the others."""
    t.need(bool(FIELDS.get(t.type)), f"{t.type} has no configuration that is known here")
    found = [
        field
        for field, bit in FIELDS[t.type]
        if (bit is None or f.has(t.offered, bit))
        and dependent in (None, bit is not None)
        and field.end <= t.transport.config_length
        and field.name not in _LATE
    ]
    t.need(bool(found), f"no such field of {t.type} is offered")
    return found


def _values(t: Trial, fields: list[Field]) -> dict[str, int]:
    return {field.name: t.read_field(field) for field in fields}


def _as_before(t: Trial, *, dependent: bool) -> None:
    fields = _fields(t, dependent=dependent)
    t.acknowledge()
    early = _values(t, fields)
    ones = [field.name for field in fields if field.width > 1 and early[field.name] == (1 << 8 * field.width) - 1]
    late = _after_features_ok(t, fields)
    changed = [f"{name} {early[name]:#x}, then {late[name]:#x}" for name in early if early[name] != late[name]]
    t.expect(not changed, f"before and after FEATURES_OK: {'; '.join(changed)}", "the same values")
    t.note(f"fields that read all ones: {', '.join(ones) or 'none'}")


def _after_features_ok(t: Trial, fields: list[Field]) -> dict[str, int]:
    t.reset()
    wanted = (
        f.known(t.type) & (t.transport.features_allowed | f.DEVICE_TYPE_MASK) & ~f.mask(f.RING_PACKED, f.ADMIN_VQ)
    )
    features = f.resolve(t.offered, wanted | t.plain, f.dependencies(t.type)) & ~f.mask(*f.LEGACY_ONLY)
    t.negotiate(features)
    return _values(t, fields)


@AREA.row("D-CFG-01", "2.5.2", "MUST", "Every configuration field is readable before FEATURES_OK.")
def readable_early(t: Trial) -> Outcome:
    """The fields that depend on no feature, at status DRIVER and at FEATURES_OK."""
    _as_before(t, dependent=False)
    return None


@AREA.row("D-CFG-02", "2.5.2", "MUST", "So are fields that depend on an offered, not yet accepted bit.")
def dependent_fields_readable_early(t: Trial) -> Outcome:
    """Those fields at status DRIVER, and at FEATURES_OK with all bits accepted."""
    _as_before(t, dependent=True)
    return None


@AREA.row("D-CFG-03", "2.5", "DESC", "The generation is equal as long as nothing changes.", transports=_COUNTING)
def generation_stands(t: Trial) -> Outcome:
    """A hundred readings of a running device, with the configuration read between them."""
    t.up()
    first = t.transport.generation()
    length = min(t.transport.config_length, 8)
    for turn in range(100):
        if length:
            t.transport.read_config(turn % length, 1)
        now = t.transport.generation()
        t.expect(now == first, f"generation {now} after {turn} readings, {first} at first", "the same")
    return None


@AREA.row(
    "D-CFG-05",
    "2.5",
    "DESC",
    "Writing a read-only field changes nothing.",
    level=Level.REGISTERS,
    transports=frozenset({P, M2, L, M1}),
)
def read_only_fields(t: Trial) -> Outcome:
    """Each field that no driver may write is written with its complement, and all are compared."""
    fields = [field for field in _fields(t) if field.name not in _WRITABLE.get(t.type, ())]
    t.need(bool(fields), f"a driver may write every field of {t.type}")
    t.up()
    before = _values(t, fields)
    for field in fields:
        if field.width in (1, 2, 4, 8):
            t.transport.write_config(field.offset, field.width, before[field.name] ^ (1 << 8 * field.width) - 1)
    after = _values(t, fields)
    changed = [
        f"{name} {before[name]:#x}, then {after[name]:#x}" for name in before if before[name] != after[name]
    ]
    t.expect(not changed, "; ".join(changed), "the same values")
    return None


@AREA.row(
    "D-CHG-01",
    "3.2.1",
    "DESC",
    "A change of configuration is notified while the device runs.",
    severity=Severity.SILENT,
    needs=frozenset({"host"}),
)
def change_is_notified(t: Trial) -> Outcome:
    """The host changes a value; a configuration-change notification is waited for."""
    change = t.lever()
    change(0)
    t.start(interrupts=True)
    t.arrived()
    change(1)
    t.owe(lambda: t.arrived().config, "no configuration-change notification came", "one (3.2.1)")
    return None
