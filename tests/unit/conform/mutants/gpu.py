"""5.7: GPUs that are wrong."""

from __future__ import annotations

from uvirtio.scripted import Gpu, ScriptedDevice
from uvirtio.scripted.pci import BAR, virtio_capability
from uvirtio.spec import pci
from uvirtio.spec.gpu import HEADER, Response
from uvirtio.spec.pci import CfgType

from . import Mutants, around
from .capabilities import place, put

MUTANTS = Mutants("scripted:gpu")


def answers(device, change):
    """Other answers: ``change`` is given each as it is."""
    around(
        device.model,
        "answer",
        lambda before, queue, data, chain: change(made) if (made := before(queue, data, chain)) else made,
    )


@MUTANTS.of("D-GPU-07")
def many_scanouts(device):
    device.model.put("num_scanouts", 17)


def with_region() -> ScriptedDevice:
    """A GPU with shared memory of id 1."""
    plain = ScriptedDevice(Gpu(), address="scripted:gpu").usual_capabilities()
    region = virtio_capability(CfgType.SHARED_MEMORY, BAR, 0x3900, 0x100, bytes(8))
    capabilities = [*plain, region[:5] + bytes([1]) + region[6:]]
    return ScriptedDevice(Gpu(), address="scripted:gpu", capabilities=capabilities)


@MUTANTS.of("D-GPU-01", on=with_region)
def a_third_region(device):
    put(device, place(device, CfgType.SHARED_MEMORY) + pci.CAP_SHMID, "<B", 7)


@MUTANTS.of("D-GPU-04")
def half_a_fence(device):
    answers(device, lambda made: made[:12] + bytes(4) + made[16:])


@MUTANTS.of("D-GPU-06")
def any_request_is_fine(device):
    def change(made):
        kind, *others = HEADER.unpack_from(made)
        return HEADER.pack(Response.OK_NODATA if kind == Response.ERR_UNSPEC else kind, *others) + made[24:]

    answers(device, change)


@MUTANTS.of("D-GPU-03")
def transfers_later(device):
    around(device.model, "_transfer", lambda before, picture: None)


@MUTANTS.of("D-GPU-05")
def clears_all_events(device):
    around(device.model, "write_config", lambda before, offset, width, value: device.model.put("events_read", 0))
