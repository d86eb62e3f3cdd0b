"""Inflate a balloon, and ask the host what it sees: QMP's query-balloon is the independent check.

    python examples/balloon.py [MEBIBYTES]      default: 64

``Machine`` is a QEMU without a guest that this process owns, with a QMP connection. Leaving the driver deflates
the balloon, so the host sees all of the memory again.
"""

import sys

import uvirtio
from uvirtio.qemu import Machine

MIB = 1 << 20
PAGE = 4096  # a balloon page, whatever the CPU's page size is (5.5.6)


def main(mebibytes: int) -> int:
    with Machine(devices=["virtio-balloon-pci"], ram=512 * MIB) as machine:

        def host() -> int:
            return int(machine.qmp("query-balloon")["actual"]) // MIB

        with machine.open(0) as device, uvirtio.Balloon(device) as balloon:
            print(f"before:   the host sees a guest of {host()} MiB")
            balloon.inflate(mebibytes * MIB // PAGE)
            print(f"inflated: {balloon.actual} pages in the balloon, the host sees {host()} MiB")
            balloon.deflate(balloon.held // 2)
            print(f"half:     {balloon.actual} pages in the balloon, the host sees {host()} MiB")
        print(f"after:    the host sees {host()} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 64))
