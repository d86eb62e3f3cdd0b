"""``uvirtio top``'s looks at QEMU's devices, with QMP as the host that changes something meanwhile."""

from __future__ import annotations

import pytest

from uvirtio.device import OpenOptions
from uvirtio.qemu import Machine
from uvirtio.sampling.driven import Driven
from uvirtio.sampling.sample import Sample, Stopped

MIB = 1 << 20


def test_a_target_of_the_host_and_a_key_are_seen_while_they_come() -> None:
    with Machine("q35", ["virtio-balloon-pci", "virtio-keyboard-pci"], timeout=20) as machine:
        pages: list[Sample] = []

        def balloon(sample: Sample) -> None:
            pages.append(sample)
            if sample.number == 1:
                machine.qmp("balloon", value=machine.function(0).ram - MIB)
            if [event for event in sample.events if "num_pages" in event]:
                raise Stopped

        options = OpenOptions(timeout=20)
        Driven(machine.function(0), options, interval=0.1).run(balloon)
        last = pages[-1]
        assert last.events == ("configuration: num_pages 0 -> 256",)  # with its notification
        assert last.config_changes == 1 and last.config["num_pages"] == 256
        (stats,) = (queue for queue in last.queues if queue.name == "statsq")
        assert stats.stall == "kept" and stats.ages[0] == pytest.approx(last.time, abs=0.5)

        keys: list[Sample] = []

        def keyboard(sample: Sample) -> None:
            keys.append(sample)
            if sample.number == 1:
                for down in (True, False):
                    key = {"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": "a"}}}
                    machine.qmp("input-send-event", events=[key])
            if sample.counters["messages"] >= 4:  # each with its SYN_REPORT
                raise Stopped

        Driven(machine.function(1), options, interval=0.1).run(keyboard)
        (first, last) = keys[1], keys[-1]
        assert last.queues[0].in_flight == first.queues[0].in_flight == last.queues[0].size
        # The buffers that came back are the youngest now; the others have been out since the start.
        ages = last.queues[0].ages
        assert ages[0] > ages[-1] and len([age for age in ages if age < ages[0] - 0.05]) >= 4
        assert not [event for sample in keys for event in sample.events]  # what was typed is not told
