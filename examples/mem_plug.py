"""Plug memory of a virtio-mem device as the host requests it, use it, give it back, unplug it.

    python examples/mem_plug.py [ADDRESS]      default: qemu:virtio-mem-pci,requested-size=256M

``Mem`` speaks the protocol, ``Manager`` decides which blocks come and go, ``Region`` is the memory itself.
Plugged memory outlives the process; so this program unplugs what it plugged.
"""

import sys

import uvirtio
from uvirtio.drivers.mem import Manager, Region

MIB = 1 << 20


def main(address: str) -> int:
    with uvirtio.open(address) as device, uvirtio.Mem(device) as mem:
        before = mem.config().plugged_size
        with Region.open(mem) as region:
            manager = Manager(mem, unit=16 * MIB, region=region)
            outcome = manager.converge()  # towards the host's request
            config = mem.config()
            print(f"{outcome.value}: {config.plugged_size // MIB} of {config.requested_size // MIB} MiB plugged")

            [unit] = manager.hand_out("this example", count=1)  # cleared, and ours until it is given back
            with region.view(unit.address - mem.addr, unit.size) as piece:
                piece.view[:5] = b"hello"
                print(f"guest-physical {unit.address:#x} holds {bytes(piece.view[:5])!r}")
            manager.give_back(unit)

            manager.converge(target=before)
            print(f"back to {mem.config().plugged_size // MIB} MiB plugged")
    return 0


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:] or ["qemu:virtio-mem-pci,requested-size=256M"])))
