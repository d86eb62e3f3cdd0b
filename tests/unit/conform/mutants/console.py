"""5.3: consoles that are wrong."""

from __future__ import annotations

from uvirtio.spec.console import Control
from uvirtio.spec.status import Status

from . import Mutants, around

MUTANTS = Mutants("scripted:console")


@MUTANTS.of("D-CON-01")
def gives_up_at_an_emergency(device):
    def write(before, offset, width, value):
        before(offset, width, value)
        if device.status_now & Status.DRIVER_OK:
            device.needs_reset()

    around(device.model, "write_config", write)


@MUTANTS.of("D-CON-02")
def writes_all_four_bytes(device):
    model = device.model

    def write(before, offset, width, value):
        model.at_host.extend(value.to_bytes(4, "little"))

    around(model, "write_config", write)


@MUTANTS.of("D-CON-03")
def adds_ports_twice(device):
    def tell(before, port, event, value):
        before(port, event, value)
        if event == Control.DEVICE_ADD:
            before(port, event, value)

    around(device.model, "tell", tell)


@MUTANTS.of("D-CON-04")
def removes_another_port(device):
    around(
        device.model,
        "tell",
        lambda before, port, event, value: before(port + 2 * (event == Control.DEVICE_REMOVE), event, value),
    )


@MUTANTS.of("D-CON-05")
def unknown_ports_are_the_end(device):
    around(
        device.model,
        "_control",
        lambda before, data: device.needs_reset() if data[:4] == b"\xff\xff\0\0" else before(data),
    )
