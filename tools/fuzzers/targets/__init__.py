"""The targets, by name."""

from __future__ import annotations

from fuzzers.target import Target
from fuzzers.targets import rings, space, trees, wires, words

ALL: tuple[type[Target], ...] = (
    rings.SplitRing,
    rings.PackedRing,
    rings.FixedSlots,
    space.Capabilities,
    space.Dumps,
    space.Configurations,
    space.Answers,
    space.Devices,
    wires.QmpAnswers,
    wires.QtestAnswers,
    wires.VhostUserReplies,
    wires.NetlinkAnswers,
    wires.VdpaAnswers,
    words.Words,
    words.Evemu,
    words.Libinput,
    words.Quirks,
    words.CommandLines,
    trees.Trees,
    trees.Journals,
    trees.DenyLists,
    trees.Traces,
)
BY_NAME = {one.name: one for one in ALL}
