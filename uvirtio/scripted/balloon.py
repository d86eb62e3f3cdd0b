"""A traditional balloon (5.5) made of Python: strict about frames, hints and statistics."""

from __future__ import annotations

import struct
from typing import Literal

from uvirtio.scripted.memory import ScriptedBlock
from uvirtio.scripted.model import Model
from uvirtio.scripted.ring import Chain
from uvirtio.spec import balloon
from uvirtio.spec import features as f

Numbering = Literal["standard", "offered", "negotiated"]
"""How a balloon numbers its optional queues: as 5.5.2 has it, or without gaps, by the features that it offers, or
by those that were negotiated."""


class Balloon(Model):
    """The traditional balloon (5.5): knows which frames it was given.

    ``shows``: queues that it shows at least, whatever they are good for.
    """

    device_id = balloon.TYPE

    def __init__(
        self,
        *,
        features: int = 0,
        config_length: int = balloon.CONFIG_SIZE,
        numbering: Numbering = "offered",
        shows: int = 0,
    ) -> None:
        super().__init__()
        self.features = features
        self.numbering = numbering
        roles = self._numbered(features)
        shown = [*range(shows), *roles]
        self.queue_sizes = [128 if index in shown else 0 for index in range(max(shown) + 1)]
        self.config = bytearray(config_length)
        self.frames: set[int] = set()
        """What the balloon holds."""
        self.requests: list[tuple[str, list[int]]] = []
        self.actual_writes: list[int] = []
        self.actual_stays: int | None = None
        """What actual reads, whatever the driver writes."""
        self.stats: list[dict[int, int]] = []
        self.stats_chain: Chain | None = None
        self.shown: dict[int, int] = {}
        """The statistics that its host shows: those with known tags, of the newest buffer."""
        self._first_stats = True
        self.hints: list[tuple[str, int]] = []
        """What came on free_page_vq: ("command", id) or ("pages", bytes)."""
        self.opened: set[int] = set()
        self._last_id = balloon.CMD_ID_FIRST - 1
        self.reports: list[list[int]] = []
        """What came on reporting_vq: the lengths of the elements of each chain."""
        self.free: list[tuple[int, int]] = []
        """What was hinted and reported: (device address, length)."""
        self.scribble = b""
        """What the device writes over hinted and reported memory: its contents are undefined."""
        self.hold = False
        """Keep requests instead of completing them; statistics are always kept."""
        self.kept: list[tuple[int, Chain]] = []

    def _numbered(self, features: int) -> dict[int, str]:
        optional = (
            (f.Balloon.STATS_VQ, balloon.STATSQ, "stats"),
            (f.Balloon.FREE_PAGE_HINT, balloon.FREE_PAGE_VQ, "hint"),
            (f.Balloon.PAGE_REPORTING, balloon.REPORTING_VQ, "report"),
        )
        roles = {balloon.INFLATEQ: "inflate", balloon.DEFLATEQ: "deflate"}
        for bit, index, role in optional:
            if f.has(features, bit):
                roles[index if self.numbering == "standard" else len(roles)] = role
        return roles

    @property
    def roles(self) -> dict[int, str]:
        """What each queue is for, by its index."""
        return self._numbered(self.device.driver_features if self.numbering == "negotiated" else self.features)

    def reset(self) -> None:
        """The device was reset: it holds nothing."""
        self.frames.clear()
        self.stats_chain = None
        self.shown = {}
        self._first_stats = True
        self.opened.clear()
        self.kept.clear()

    def memory_freed(self, block: ScriptedBlock) -> None:
        """The driver frees memory: none of it may be in the balloon."""
        kept = self.frames.intersection(block.frames)
        self.device.check("BAL-FREE", not kept, f"{len(kept)} pages were freed while the balloon holds them")

    @property
    def target(self) -> int:
        """num_pages, the size that the host asks for, in pages."""
        return self.read_config(balloon.NUM_PAGES, 4)

    @property
    def actual(self) -> int:
        """The size that the driver wrote last, in pages."""
        return self.read_config(balloon.ACTUAL, 4)

    def set_target(self, pages: int) -> None:
        """What the host does when it wants the balloon to have ``pages`` pages; with its interrupt."""
        self.device.change_config(balloon.NUM_PAGES, struct.pack("<I", pages))

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Take a write to the configuration: actual and poison_val alone are writable (5.5.4)."""
        writable = (balloon.ACTUAL, balloon.POISON_VAL)
        self.device.check("BAL-CONFIG", offset in writable and width == 4, f"a config write at {offset}")
        if offset == balloon.ACTUAL:
            self.actual_writes.append(value)
            value = value if self.actual_stays is None else self.actual_stays
        if offset in writable:
            super().write_config(offset, width, value)

    def set_hint_id(self, ident: int) -> None:
        """What a host does that wants a round of hints, or no more of them."""
        self.device.change_config(balloon.FREE_PAGE_HINT_CMD_ID, struct.pack("<I", ident))

    def begin_round(self) -> None:
        """What a host does that begins to migrate: ask for hints, under an id that was not there before."""
        self._last_id += 1
        self.set_hint_id(self._last_id)

    def end_round(self) -> None:
        """What a host does that has migrated: no more hints are needed."""
        self.set_hint_id(balloon.CMD_ID_DONE)

    @property
    def hint_id(self) -> int:
        """free_page_hint_cmd_id, as the driver reads it."""
        return self.read_config(balloon.FREE_PAGE_HINT_CMD_ID, 4)

    def handle(self, queue: int, chain: Chain) -> int | None:
        """Take a chain by what its queue is for."""
        written: int | None = 0
        match self.roles.get(queue):
            case None:
                self.device.check("BAL-QUEUE", False, f"a chain on queue {queue}, which is for nothing")
            case "stats":
                self._take_stats(chain)
                return None
            case "hint":
                self._take_hint(chain)
            case "report":
                self.device.check("BAL-R", not chain.readable, "a readable element on reporting_vq")
                self.reports.append([element.length for element in chain.writable])
                written = self._take_free(chain)
            case role:
                self._take_pfns(role, chain)
        if self.hold:
            self.kept.append((queue, chain))
            return None
        return written

    def release(self) -> None:
        """Complete what was kept."""
        kept, self.kept = self.kept, []
        for queue, chain in kept:
            self.device.complete(queue, chain)

    def _take_stats(self, chain: Chain) -> None:
        check = self.device.check
        data = chain.data()
        check("BAL-S01", self.stats_chain is None, "a second statistics buffer while one is out")
        check("BAL-S05", len(data) % balloon.STAT_SIZE == 0 and bool(data), f"statistics of {len(data)} bytes")
        check("BAL-S", not chain.writable, "a writable element on statsq")
        entries = dict(struct.iter_unpack("<HQ", data[: len(data) // 10 * 10]))
        check("BAL-S06", not self.stats or list(entries) == list(self.stats[-1]), "another set of statistics")
        self.stats.append(entries)
        # 5.5.6.3.3: a legacy driver may put rubbish into the first buffer.
        if f.has(self.device.driver_features, f.VERSION_1) or not self._first_stats:
            self.show(entries)
        self._first_stats = False
        self.stats_chain = chain

    def show(self, entries: dict[int, int]) -> None:
        """Take statistics over, without those that it does not know (5.5.6.3.2)."""
        self.shown = {tag: value for tag, value in entries.items() if tag in tuple(balloon.Stat)}

    def _take_hint(self, chain: Chain) -> None:
        check = self.device.check
        if chain.readable:
            data = chain.data()
            check("BAL-H01", len(data) == 4 and not chain.writable, f"a command of {len(data)} bytes")
            value = int.from_bytes(data[:4], "little")
            check("BAL-H03", value not in self.opened, f"the id {value} came twice")
            if value >= balloon.CMD_ID_FIRST:
                self.opened.add(value)
            self.hints.append(("command", value))
            return
        opened = [value for kind, value in self.hints if kind == "command"]
        inside = bool(opened) and opened[-1] >= balloon.CMD_ID_FIRST
        check("BAL-H02", inside, "pages outside of a round")
        self.hints.append(("pages", chain.room))
        # 5.5.6.5.2: pages under another id are ignored.
        if opened and opened[-1] == self.hint_id:
            self._take_free(chain)

    def _take_free(self, chain: Chain) -> int:
        for element in chain.writable:
            self.free.append((element.address, element.length))
            if self.scribble:
                times = element.length // len(self.scribble)
                self.device.memory.write(element.address, self.scribble * times)
        return chain.room if self.scribble else 0

    def _take_pfns(self, role: str, chain: Chain) -> None:
        check = self.device.check
        data = chain.data()
        check("BAL-PFN", not chain.writable and len(data) % 4 == 0, "PFN arrays are le32 and read-only")
        pfns = list(struct.unpack(f"<{len(data) // 4}I", data[: len(data) // 4 * 4]))
        owned = {frame for block in self.device.memory.open_blocks() for frame in block.frames}
        for pfn in pfns:
            if role == "inflate":
                check("BAL-PFN", pfn != 0 and pfn in owned, f"frame {pfn:#x} belongs to no driver")
                self.frames.add(pfn)
            else:
                check("BAL-05", pfn in self.frames, f"frame {pfn:#x} is deflated and was never inflated")
                self.frames.discard(pfn)
        self.requests.append((role, pfns))

    def ask_for_stats(self) -> None:
        """Give the statistics buffer back, which asks for new ones (5.5.6.3)."""
        chain, self.stats_chain = self.stats_chain, None
        assert chain is not None
        self.device.complete(balloon.STATSQ, chain, 0)
