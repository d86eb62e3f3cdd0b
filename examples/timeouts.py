"""What a device that does not answer looks like: a deadline, an error with a remedy, and how to go on.

    python examples/timeouts.py

The device gives 64 bytes an hour (QEMU's max-bytes and period), so the second read gets no answer. After a missed
deadline the device counts as broken: calls fail at once, and opening it again resets it.
"""

import uvirtio
from uvirtio.qemu import Machine


def main() -> None:
    devices = ["virtio-rng-pci,max-bytes=64,period=3600000"]
    with Machine(devices=devices) as machine, machine.open(0, timeout=0.3) as device:
        rng = uvirtio.Rng(device)
        print(f"first read:  {len(rng.read(64))} bytes")
        try:
            rng.read(64)
        except uvirtio.DeviceTimeout as error:
            print(f"second read: {error.code}: {error}")
            print(f"  remedy: {error.remedy}")
        try:
            rng.read(64)
        except uvirtio.DeviceFailure as error:
            print(f"third read:  {error.code}, at once; because of {error.__cause__}")
        print(f"the device counts as broken: {device.broken is not None}")
    # close() reset the device and waited until it said so; only then was its memory freed.

    with uvirtio.open("qemu:virtio-rng-pci") as device, uvirtio.Rng(device) as rng:
        print(f"another one: {len(rng.read(64))} bytes")


if __name__ == "__main__":
    main()
