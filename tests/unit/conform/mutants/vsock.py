"""5.10: socket devices that are wrong."""

from __future__ import annotations

from uvirtio.spec import features as f
from uvirtio.spec import vsock
from uvirtio.spec.vsock import Op

from . import Mutants, around

MUTANTS = Mutants("scripted:vsock")


def tells(device, change):
    """Other packets: ``change`` is given the operation, and returns another."""
    around(
        device.model,
        "tell",
        lambda before, key, op, data=b"", **how: before(key, change(op), data, **how),
    )


@MUTANTS.of("D-VSK-06")
def is_the_host(device):
    device.model.put("guest_cid", vsock.HOST_CID)


@MUTANTS.of("D-VSK-01")
def offers_stream_alone(device):
    device.offered &= ~f.mask(f.Vsock.NO_IMPLIED_STREAM)


@MUTANTS.of("D-VSK-02")
def no_sockets_without_a_bit(device):
    def change(op):
        return op if f.has(device.driver_features, f.Vsock.STREAM) else Op.RST

    tells(device, change)


@MUTANTS.of("D-VSK-03")
def waits_for_rx(device):
    model = device.model
    around(
        model,
        "handle",
        lambda before, queue, chain: (
            None if queue == vsock.TX and len(model.packets) > 2 else before(queue, chain)
        ),
    )


@MUTANTS.of("D-VSK-04")
def sends_all_at_once(device):
    def echo(before, key, one):
        one.credit = 1 << 16
        before(key, one)

    around(device.model, "_echo", echo)


@MUTANTS.of("D-VSK-05")
def counts_twice(device):
    def taken(before, data):
        for one in device.model.connections.values():
            one.received += 2 * len(data)
        before(data)

    around(device.model, "_taken", taken)
