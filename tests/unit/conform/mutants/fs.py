"""5.11: file system devices that are wrong."""

from __future__ import annotations

from uvirtio.spec import fs

from . import Mutants, around

MUTANTS = Mutants("scripted:fs")


@MUTANTS.of("D-FS-01")
def no_request_queue(device):
    device.model.put("num_request_queues", 0)


@MUTANTS.of("D-FS-03")
def one_after_the_other(device):
    """Once a request queue has been busy, hiprio waits."""
    asked = []

    def handle(before, queue, chain):
        asked.append(queue)
        return None if queue == fs.HIPRIO and asked.count(fs.REQUESTQ) > 1 else before(queue, chain)

    around(device.model, "handle", handle)


@MUTANTS.of("D-FS-06")
def keeps_what_is_too_long(device):
    around(
        device.model,
        "handle",
        lambda before, queue, chain: (
            None if int.from_bytes(chain.data()[:4], "little") > len(chain.data()) else before(queue, chain)
        ),
    )
