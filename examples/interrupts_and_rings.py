"""The same reads with each interrupt mode and both ring formats: interrupts taken, kicks, bytes a second.

    python examples/interrupts_and_rings.py [ADDRESS]      default: qemu:virtio-rng-pci,packed=on

``interrupts=`` lists the modes that may be taken, best first; a single one insists. The rates are those of this
machine and of Python; what counts is that each combination works.
"""

import sys
import time

import uvirtio

READS = 50


def main(address: str) -> int:
    print(f"{'interrupts':<15} {'ring':<7} {'taken':>6} {'kicks':>6} {'reads/s':>8}")
    for mode in uvirtio.InterruptMode:
        for ring in ("split", "packed"):
            try:
                device = uvirtio.open(address, interrupts=[mode], ring=ring)
            except uvirtio.UvirtioError as error:
                print(f"cannot be opened: {error.code}: {error}", file=sys.stderr)
                return error.exit_code
            with device:
                try:
                    rng = uvirtio.Rng(device, health=False)
                except uvirtio.UvirtioError as error:
                    print(f"{mode.value:<15} {ring:<7} {error.code}")
                    continue
                begin = time.monotonic()
                for _ in range(READS):
                    rng.read(64)
                rate = READS / (time.monotonic() - begin)
                kicks = sum(queue.kicks for queue in device.queues.values())
                print(f"{mode.value:<15} {ring:<7} {device.counters.interrupts_taken:>6} {kicks:>6} {rate:>8.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:] or ["qemu:virtio-rng-pci,packed=on"])))
