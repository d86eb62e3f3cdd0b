"""Find out that a device was unplugged while it was in use: uvirtio.DeviceGone, and nothing hangs.

    python examples/hot_unplug.py

On QEMU's pc machine a guest ejects a device by writing the bit of its slot to an ACPI port (0xae08, "eject" of
hw/acpi/pcihp.c). There is no guest here, so this program does what its kernel would do.
"""

import sys

import uvirtio
from uvirtio.opening import identify
from uvirtio.qemu import Machine

EJECT_PORT = 0xAE08


def unplug(machine: Machine, ident: str) -> None:
    """Have the device with QEMU's id ``ident`` removed from the root bus."""
    devices = machine.qmp("query-pci")[0]["devices"]
    slot = next(device["slot"] for device in devices if device["qdev_id"] == ident)
    machine.qmp("device_del", id=ident)  # the request; the guest answers:
    machine.qtest.port_out(4, EJECT_PORT, 1 << slot)


def main() -> None:
    with Machine("pc", ["virtio-rng-pci", "virtio-balloon-pci"]) as machine:
        rng_function, balloon_function = machine.functions
        with identify(balloon_function.address, balloon_function) as other, uvirtio.Balloon(other) as balloon:
            with identify(rng_function.address, rng_function) as device, uvirtio.Rng(device) as rng:
                print(f"plugged: {len(rng.read(16))} bytes")
                unplug(machine, rng_function.id)
                try:
                    rng.read(16)
                    sys.exit("it is still there")
                except uvirtio.DeviceGone as error:
                    print(f"gone:    {error.code}: {error}")
            print("QEMU:   ", machine.qmp("query-status")["status"])  # it is the device that went, not QEMU
            balloon.inflate(10)
            print(f"other:   {balloon.actual} pages in the balloon, unharmed")


if __name__ == "__main__":
    main()
