"""Write to a disk image of one's own through a virtio block device, read it back, compare with the file.

    python examples/blk_image.py [IMAGE]      default: a scratch image of 4 MiB. IMAGE IS OVERWRITTEN

``drives`` are raw images for the disks of a machine; in an address it is ``qemu:q35,file=IMAGE/virtio-blk-pci``.
Many requests are in flight at once; ``flush`` makes what was written durable. Without ``allow_write=True`` the
driver refuses to write.
"""

import os
import sys
import tempfile
from pathlib import Path

import uvirtio
from uvirtio.drivers.blk import SECTOR_SIZE
from uvirtio.qemu import Machine


def main(image: Path) -> int:
    content = os.urandom(image.stat().st_size // SECTOR_SIZE * SECTOR_SIZE)
    with (
        Machine(devices=["virtio-blk-pci"], drives=[image]) as machine,
        machine.open(0) as device,
        uvirtio.Blk(device, allow_write=True) as disk,
    ):
        print(f"{disk.capacity} sectors of {SECTOR_SIZE} bytes, {disk.request_size} bytes a request at most")
        disk.write(0, content)
        disk.flush()
        reads = [disk.submit_read(sector, 8, kick=False) for sector in range(0, disk.capacity, 8)]
        disk.wait(reads)
        same = b"".join(read.result() for read in reads) == content
        print(f"{len(reads)} reads of 4 KiB: {'what was written' if same else 'something else'}")
    in_file = image.read_bytes() == content
    print(f"the file holds {'the same' if in_file else 'something else'}")
    return 0 if same and in_file else 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(Path(sys.argv[1])))
    with tempfile.NamedTemporaryFile(suffix=".img") as scratch:
        scratch.truncate(4 << 20)
        sys.exit(main(Path(scratch.name)))
