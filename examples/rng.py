"""Random bytes from a virtio entropy device: open an address, put a driver on it, read.

    python examples/rng.py [ADDRESS]      default: qemu:virtio-rng-pci

A small program to begin with. It shows what was negotiated, and how an error says what to do about it.
"""

import sys

import uvirtio
from uvirtio.spec import features


def main(address: str) -> int:
    try:
        with uvirtio.open(address) as device, uvirtio.Rng(device) as rng:
            names = ", ".join(bit.name for bit in features.names(device.type, device.features))
            print(f"{device.address}: {device.type}, {device.transport.interrupt_mode.value}, {names}")
            print(rng.read(32).hex(" "))
    except uvirtio.UvirtioError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        print(f"  seen: {error.seen}; expected: {error.expected}; remedy: {error.remedy}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:] or ["qemu:virtio-rng-pci"])))
