"""Find out that a device was unplugged while it was in use: uvirtio.DeviceGone, and nothing hangs.

    python examples/hot_unplug.py

``plug`` and ``unplug`` play the host and the guest of a hot-plug. On q35 a device needs a root port to be plugged
into; on pc it goes into the root bus.
"""

import sys

import uvirtio
from uvirtio.qemu import Machine


def main() -> None:
    with (
        Machine("q35", ["virtio-balloon-pci"], root_ports=1) as machine,
        machine.open(0) as other,
        uvirtio.Balloon(other) as balloon,
    ):
        function = machine.plug("virtio-rng-pci")
        with machine.open(function) as device, uvirtio.Rng(device) as rng:
            print(f"plugged: {len(rng.read(16))} bytes")
            machine.unplug(function)
            try:
                rng.read(16)
                sys.exit("it is still there")
            except uvirtio.DeviceGone as error:
                print(f"gone:    {error.code}: {error.seen}")
        print("QEMU:   ", machine.qmp("query-status")["status"])  # it is the device that went, not QEMU
        balloon.inflate(10)
        print(f"other:   {balloon.actual} pages in the balloon, unharmed")


if __name__ == "__main__":
    main()
