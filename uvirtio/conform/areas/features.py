"""2.2 and 6: what the device offers, what it accepts, and the bits that every type has."""

from __future__ import annotations

from typing import Final

from uvirtio.conform.lane import SplitLane
from uvirtio.conform.row import ANY, LEGACY, MODERN, REGISTERS, Area, Level, P, V
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity, free
from uvirtio.spec import features as f
from uvirtio.spec import pci
from uvirtio.spec.status import Status, describe

AREA = Area("features", 20, "2.2, 6: feature bits", transports=ANY)

_ACCEPTED = "FEATURES_OK to stay set"
_REFUSED = "FEATURES_OK to be cleared"
_WITHOUT_BITS: Final = ("rng", "input")
"""Types whose section defines no bits (5.4.3, 5.8.3)."""
_MODERN_ONLY: Final = f.ALL & ~f.LEGACY_MASK


def named(t: Trial, word: int) -> str:
    """The bits of a word by name."""
    return ", ".join(f"{one.name} ({one.bit})" for one in f.names(t.type, word)) or "none"


def carried(t: Trial) -> int:
    """All offered bits that a driver can accept here, with what they depend on; without packed rings."""
    wanted = f.known(t.type) & (t.transport.features_allowed | f.DEVICE_TYPE_MASK)
    wanted |= t.plain
    wanted &= ~f.mask(f.RING_PACKED, f.ADMIN_VQ, f.SR_IOV)
    return f.resolve(t.offered, wanted, f.dependencies(t.type)) & ~f.mask(*f.LEGACY_ONLY)


# --- the offer (2.2.2) ------------------------------------------------------------------------------------------


@AREA.row(
    "D-FEAT-01",
    "2.2.2",
    "MUST NOT",
    "Offer no bit whose prerequisite is missing from the offer.",
    level=Level.LOOK,
)
def offer_is_complete(t: Trial) -> Outcome:
    """The offer is compared with the dependencies of the device's type; of legacy, the type's own."""
    rules = f.device_dependencies(t.type)
    if t.legacy:
        rules = tuple(rule for rule in rules if rule.bit < 32)
    broken = f.unmet(t.offered, rules)
    words = [f"{f.feature(t.type, rule.bit).name} without {f.needed(t.type, rule)}" for rule in broken]
    t.expect(not broken, "; ".join(words), "no such bit")
    return None


@AREA.row(
    "D-FEAT-05",
    "2.2.2",
    "MUST NOT",
    "Offer no bit that it could not serve: undefined or reserved.",
    level=Level.LOOK,
)
def offers_no_reserved_bit(t: Trial) -> Outcome:
    """The offer is compared with the bits that are defined; legacy ones count on a legacy interface alone."""
    defined = f.mask(*f.Reserved)
    if not t.legacy:
        defined &= ~f.mask(*f.LEGACY_ONLY)
    odd = t.offered & ~defined & ~f.DEVICE_TYPE_MASK
    t.expect(not odd, f"offered: {named(t, odd)}", "defined bits alone")
    return None


@AREA.row(
    "D-FEAT-06",
    "2.2.2",
    "MUST NOT",
    "Offer no bit that is reserved or foreign to this transport.",
    level=Level.LOOK,
    transports=ANY - {P},
)
def offers_nothing_foreign(t: Trial) -> Outcome:
    """The offer is compared with what the transport has a form for; ADMIN_VQ, SR_IOV and queue names are PCI's."""
    foreign = f.mask(f.ADMIN_VQ, f.SR_IOV, f.NOTIF_CONFIG_DATA)
    if t.type == "net":
        foreign &= ~f.mask(f.ADMIN_VQ)  # 41 was GUEST_RSC4 there before 1.0
    odd = t.offered & (_MODERN_ONLY if t.legacy else foreign)
    t.expect(not odd, f"offered: {named(t, odd)}", "none of them here")
    return None


@AREA.row(
    "D-FEAT-07",
    "2.2.2",
    "MUST NOT",
    "Offer no bit without meaning for its device type.",
    level=Level.LOOK,
)
def offers_what_its_type_has(t: Trial) -> Outcome:
    """Bits 0 to 23 and 50 to 127 are compared with the table of the type."""
    t.need(t.type in f.DEVICE_BITS or t.type in _WITHOUT_BITS, f"there is no table of the bits of {t.type} here")
    odd = t.offered & f.DEVICE_TYPE_MASK & ~f.known(t.type)
    t.expect(not odd, f"offered: {named(t, odd)}", f"the bits of {t.type}")
    return None


@AREA.row(
    "D-FEAT-09",
    "2.2",
    "DESC",
    "What is offered does not change between two readings.",
    level=Level.LEGAL,
    severity=Severity.SILENT,
)
def offer_stands(t: Trial) -> Outcome:
    """All words are read again, before and after a reset and while the device runs."""
    first = t.transport.device_features()
    for state in ("again", "after a reset", "while it runs"):
        if state == "after a reset":
            t.reset()
        if state == "while it runs":
            t.up()
        now = t.transport.device_features()
        t.expect(now == first, f"{now:#x} {state}, {first:#x} at first", "the same offer")
    return None


@AREA.row(
    "D-RES-01",
    "6.2",
    "MUST",
    "Offer VERSION_1.",
    level=Level.LOOK,
    transports=MODERN,
)
def offers_version_1(t: Trial) -> Outcome:
    """Bit 32 of the offer."""
    t.expect(f.has(t.offered, f.VERSION_1), f"{t.offered:#x}", "VERSION_1")
    return None


@AREA.row(
    "D-RES-02",
    "6.2",
    "SHOULD",
    "Offer ACCESS_PLATFORM where its addresses are translated or restricted.",
    level=Level.LOOK,
    transports=frozenset({P, V}),
)
def offers_access_platform(t: Trial) -> Outcome:
    """Bit 33 of the offer, where an IOMMU stands before the device; a PCI function may go round it."""
    t.need(t.transport.translates, "no IOMMU stands before the device")
    if t.transport.kind == "pci-modern" and not f.has(t.offered, f.ACCESS_PLATFORM):
        return free("ACCESS_PLATFORM is not offered: it has to go round the IOMMU")
    t.expect(f.has(t.offered, f.ACCESS_PLATFORM), "ACCESS_PLATFORM is not offered", "ACCESS_PLATFORM")
    return None


@AREA.row(
    "D-RES-05",
    "6.2",
    "MUST NOT",
    "No SR_IOV is offered without the capability, or off PCI.",
    level=Level.LOOK,
    transports=MODERN,
)
def offers_sr_iov_with_its_capability(t: Trial) -> Outcome:
    """Bit 37 against the extended capabilities of the function."""
    if f.has(t.offered, f.SR_IOV):
        t.expect(pci.EXT_CAP_SRIOV in extended(t), "SR_IOV without its capability", "both or none")
    return None


@AREA.row(
    "D-RES-04",
    "6.2",
    "SHOULD",
    "Offer SR_IOV when it has that capability structure.",
    level=Level.LOOK,
    transports=frozenset({P}),
)
def offers_sr_iov(t: Trial) -> Outcome:
    """The extended capability against bit 37."""
    if pci.EXT_CAP_SRIOV in extended(t):
        t.expect(f.has(t.offered, f.SR_IOV), "the capability without SR_IOV", "both")
    return None


def extended(t: Trial) -> list[int]:
    """The ids of the extended capabilities of a PCI Express function; empty elsewhere."""
    config = getattr(t.transport.backend, "config", None)
    found: list[int] = []
    if config is None or config.length < pci.EXPRESS_CONFIG_SIZE:
        return found
    at = pci.CONFIG_SIZE
    for _ in range((pci.EXPRESS_CONFIG_SIZE - pci.CONFIG_SIZE) // 8):
        header = config.read32(at)
        if header in (0, 0xFFFFFFFF):
            break
        found.append(header & 0xFFFF)
        at = header >> 20 & 0xFFC
        if at < pci.CONFIG_SIZE:
            break
    return found


@AREA.row(
    "D-RES-L1",
    "6.3",
    "MUST",
    "Transitional: offer ANY_LAYOUT on the legacy interface.",
    level=Level.LOOK,
    transports=LEGACY,
)
def offers_any_layout(t: Trial) -> Outcome:
    """Bit 27 of the legacy word."""
    t.expect(f.has(t.offered, f.ANY_LAYOUT), f"{t.offered:#x}", "ANY_LAYOUT")
    return None


# --- what it accepts (2.2.2, 3.1.1) -----------------------------------------------------------------------------


@AREA.row(
    "D-FEAT-02",
    "2.2.2",
    "SHOULD",
    "Accept every valid subset of the offer.",
    level=Level.ODD,
    transports=MODERN,
    witness="host",
)
def accepts_subsets(t: Trial) -> Outcome:
    """All that is offered, then that without each bit in turn, with what depends on it."""
    everything = carried(t)
    may_refuse = f.mask(f.VERSION_1, f.ACCESS_PLATFORM)
    if t.type == "mem":
        may_refuse |= f.mask(f.Mem.UNPLUGGED_INACCESSIBLE)  # 5.15.5.2
    if t.type == "balloon":
        may_refuse |= f.mask(f.Balloon.MUST_TELL_HOST)  # 5.5.3.2
    t.expect(t.accepts(everything), f"it refuses all of its offer, {everything:#x}", _ACCEPTED)
    t.witnessed("the accepted word", everything, t.host_has)
    for bit in f.bits(everything & ~may_refuse):
        rest = f.resolve(everything & ~f.mask(bit), f.ALL, f.dependencies(t.type))
        name = f.feature(t.type, bit).name
        t.expect(t.accepts(rest), f"it refuses its offer without {name}: {rest:#x}", _ACCEPTED)
        t.witnessed("the accepted word", rest, t.host_has)
    return None


@AREA.row(
    "D-FEAT-03",
    "2.2.2",
    "MUST",
    "Refuse FEATURES_OK for a choice it cannot accept.",
    level=Level.REGISTERS,
    severity=Severity.SILENT,
    transports=MODERN,
    witness="host",
)
def refuses_what_was_not_offered(t: Trial) -> Outcome:
    """One bit that was never offered is accepted beside the plain ones."""
    bit = next(bit for bit in (f.ADMIN_VQ, f.SR_IOV, f.NOTIFICATION_DATA, 49) if not f.has(t.offered, bit))
    taken = t.accepts(t.plain | f.mask(bit))
    words = {None: "", True: ", and which its host has as accepted", False: ", and which its host leaves out"}
    has = words[None if t.host_has is None else f.has(t.host_has, bit)]
    t.expect(not taken, f"FEATURES_OK with {f.feature(t.type, bit).name}, which was not offered{has}", _REFUSED)
    return None


@AREA.row(
    "D-FEAT-04",
    "2.2.2",
    "MUST",
    "Refuse FEATURES_OK for a bit accepted without its prerequisite.",
    level=Level.REGISTERS,
    severity=Severity.SILENT,
    transports=MODERN,
)
def refuses_what_lacks_its_prerequisite(t: Trial) -> Outcome:
    """Each offered bit that depends on another of its type is accepted without any of those."""
    rules = [rule for rule in f.device_dependencies(t.type) if f.has(t.offered, rule.bit) and rule.bit < 33]
    rules += [rule for rule in f.device_dependencies(t.type) if f.has(t.offered, rule.bit) and rule.bit >= 50]
    rules = [rule for rule in rules if rule.any_of != (f.VERSION_1,)]
    t.need(bool(rules), "nothing that is offered has a prerequisite but VERSION_1")
    wrong = []
    for rule in rules:
        if t.accepts(t.plain & ~f.mask(*rule.any_of) | f.mask(rule.bit)):
            wrong.append(f"{f.feature(t.type, rule.bit).name} without {f.needed(t.type, rule)}")
    t.expect(not wrong, f"FEATURES_OK with {'; '.join(wrong)}", _REFUSED)
    return None


@AREA.row(
    "D-FEAT-08",
    "2.2.2",
    "SHOULD NOT",
    "Never refuse, after a reset, a set it accepted before.",
    transports=MODERN,
    witness="host",
)
def accepts_again(t: Trial) -> Outcome:
    """The same set five times, with a reset between."""
    for turn in range(5):
        t.expect(t.accepts(t.plain), f"refused after {turn} times", _ACCEPTED)
        t.witnessed("the accepted word", t.plain, t.host_has)
    return None


@AREA.row(
    "D-FEAT-10",
    "3.1.1",
    "DESC",
    "Feature bits are settled with FEATURES_OK: later writes change nothing.",
    level=Level.REGISTERS,
    severity=Severity.SILENT,
    transports=REGISTERS,
    witness="host",
)
def later_writes_change_nothing(t: Trial) -> Outcome:
    """EVENT_IDX is written after FEATURES_OK, and used_event set far away: interrupts come as without it."""
    t.need_feature(f.EVENT_IDX)
    t.need(not t.packed, "a test of split rings")
    lane = t.prepare(features=t.plain & ~f.mask(f.EVENT_IDX), interrupts=True)
    assert isinstance(lane, SplitLane)
    t.transport.set_driver_features(t.plain | f.mask(f.EVENT_IDX))
    t.expect(bool(t.status() & Status.FEATURES_OK), f"status {describe(t.status())}", _ACCEPTED)
    t.go()
    lane.raw.used_event = 0x4000
    t.good(lane)
    t.await_interrupt(lane)
    t.witnessed("the accepted word", t.plain & ~f.mask(f.EVENT_IDX), t.host.features(t.type))
    return None
