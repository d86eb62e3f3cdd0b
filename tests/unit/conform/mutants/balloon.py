"""5.5: balloons that are wrong."""

from __future__ import annotations

import struct

from uvirtio.scripted import Balloon, ScriptedDevice, ScriptedLegacy
from uvirtio.spec import balloon as spec
from uvirtio.spec import features as f

from . import Mutants, around

MUTANTS = Mutants("scripted:balloon")

STATS = f.Balloon.STATS_VQ
HINTS = f.Balloon.FREE_PAGE_HINT
REPORTS = f.Balloon.PAGE_REPORTING
POISON = f.Balloon.PAGE_POISON
LEGACY = "scripted:balloon,transport=legacy"


def offers(*bits, numbering="standard"):
    """A balloon with more features."""
    return lambda: ScriptedDevice(Balloon(features=f.mask(*bits), numbering=numbering), address="scripted:balloon")


def legacy_with_stats():
    """A legacy balloon with statistics."""
    return ScriptedLegacy(Balloon(features=f.mask(STATS)), bar_size=128, address=LEGACY)


def zero(device, pfn):
    """Write zeroes over a page."""
    block = device.memory.frame_owner(pfn)
    if block is not None:
        at = block.frames.index(pfn) * 4096
        block.view[at : at + 4096] = bytes(4096)


def following(device, pfn):
    """The page behind another one in the block of the driver's."""
    frames = device.memory.frame_owner(pfn).frames
    return frames[(frames.index(pfn) + 1) % len(frames)]


def after(device, role, act):
    """Do something with the page numbers of each request, after it."""

    def take(before, asked, chain):
        before(asked, chain)
        if asked == role:
            data = chain.data()
            act(list(struct.unpack(f"<{len(data) // 4}I", data[: len(data) // 4 * 4])), data)

    around(device.model, "_take_pfns", take)


# --- inflating and deflating ------------------------------------------------------------------------------------


@MUTANTS.of("D-BAL-01", on=offers(f.Balloon.MUST_TELL_HOST))
def refuses_without_must_tell_host(device):
    device.faults.refuse_without = f.mask(f.Balloon.MUST_TELL_HOST)


@MUTANTS.of("D-BAL-02")
def frees_pages(device):
    after(device, "inflate", lambda pfns, data: [zero(device, pfn) for pfn in pfns])


@MUTANTS.of("D-BAL-03")
def frees_the_next_page_too(device):
    after(device, "inflate", lambda pfns, data: zero(device, following(device, pfns[-1])))


@MUTANTS.of("D-BAL-04")
def hangs_with_a_page_of_nobody(device):
    def act(pfns, data):
        if device.memory.frame_owner(pfns[0]) is None:
            device.faults.reset_reads = -1

    after(device, "inflate", act)


@MUTANTS.of("D-BAL-05")
def fills_up_the_fragment(device):
    def act(pfns, data):
        if len(data) % 4:
            zero(device, int.from_bytes(data[len(data) // 4 * 4 :], "little"))

    after(device, "inflate", act)


@MUTANTS.of("D-BAL-17")
def keeps_actual_to_itself(device):
    around(device.model, "read_config", lambda before, at, width: 0 if at == spec.ACTUAL else before(at, width))


@MUTANTS.of("D-BAL-L1", on=LEGACY)
def wants_its_pages_back(device):
    """It serves no more once two pages were not deflated."""
    around(
        device.model,
        "handle",
        lambda before, queue, chain: before(queue, chain) if len(device.model.frames) < 3 else None,
    )


@MUTANTS.of("D-BAL-L2", on=LEGACY)
def takes_inflated_pages_for_its_own(device):
    around(
        device.model,
        "_take_pfns",
        lambda before, role, chain: ([zero(device, pfn) for pfn in device.model.frames], before(role, chain)),
    )


# --- statistics -------------------------------------------------------------------------------------------------


@MUTANTS.of("D-BAL-06", on=offers(STATS))
def stops_at_unknown_tags(device):
    def show(before, entries):
        tags = list(entries)
        end = next((place for place, tag in enumerate(tags) if tag > 15), len(tags))
        before({tag: entries[tag] for tag in tags[:end]})

    around(device.model, "show", show)


@MUTANTS.of("D-BAL-07", on=offers(STATS))
def takes_values_by_their_place(device):
    around(
        device.model,
        "show",
        lambda before, entries: before(dict(zip(sorted(entries), entries.values(), strict=True))),
    )


@MUTANTS.of("D-BAL-08", on=offers(STATS))
def gives_statistics_back(device):
    def handle(before, queue, chain):
        done = before(queue, chain)
        return 0 if queue == spec.STATSQ else done

    around(device.model, "handle", handle)


@MUTANTS.of("D-BAL-L3", on=legacy_with_stats)
def believes_the_first_statistics(device):
    around(device.model, "reset", lambda before: (before(), setattr(device.model, "_first_stats", False)))


# --- hints and reports ------------------------------------------------------------------------------------------


@MUTANTS.of("D-BAL-09", on=offers(HINTS))
def is_done_before_it_began(device):
    struct.pack_into("<I", device.model.config, spec.FREE_PAGE_HINT_CMD_ID, spec.CMD_ID_DONE)


def discards_hints():
    """A balloon with hints, which loses the contents of hinted pages as it may."""
    device = offers(HINTS)()
    device.model.scribble = bytes(64)
    return device


@MUTANTS.of("D-BAL-10", on=offers(HINTS))
def has_one_id(device):
    around(device.model, "begin_round", lambda before: device.model.set_hint_id(7))


@MUTANTS.of("D-BAL-11", on=discards_hints)
def looks_at_no_id(device):
    around(device.model, "_take_hint", lambda before, chain: (before(chain), device.model._take_free(chain)))


@MUTANTS.of("D-BAL-12", on=discards_hints)
def discards_late(device):
    """It goes on with what was hinted as soon as the driver looks whether it is done."""
    model = device.model

    def read(before, at, width):
        done = model.config[spec.FREE_PAGE_HINT_CMD_ID] == spec.CMD_ID_DONE
        for address, length in model.free if done else ():
            device.memory.write(address, bytes(length))
        return before(at, width)

    around(model, "read_config", read)


@MUTANTS.of("D-BAL-13", on=offers(HINTS))
def stops_for_good(device):
    around(device.model, "end_round", lambda before: device.model.set_hint_id(spec.CMD_ID_STOP))


@MUTANTS.of("D-BAL-16", on=offers(REPORTS))
def numbers_without_gaps(device):
    device.model.numbering = "offered"
    device.model.queue_sizes = [128] * 3


@MUTANTS.of("D-BAL-14", on=offers(REPORTS, POISON))
def fills_reported_pages(device):
    device.model.scribble = b"\x5a"


@MUTANTS.of("D-BAL-15", on=offers(REPORTS))
def takes_a_page_more(device):
    def take(before, chain):
        last = chain.writable[-1]
        zero(device, following(device, (last.address + last.length - 1) // 4096))
        return before(chain)

    around(device.model, "_take_free", take)
