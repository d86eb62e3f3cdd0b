#!/bin/bash
# Software: qemu-storage-daemon of QEMU 1:7.2+dfsg-7+deb12u18+b3 (Debian 12)
# Surprise: its vhost-user disk offers VIRTIO_BLK_F_SIZE_MAX and says that no segment may be longer than 0 bytes.
# Documentation: virtio 1.4, section 5.2.3: with VIRTIO_BLK_F_SIZE_MAX (bit 1) "Maximum size of any single segment
#   is in size_max". Nothing there gives 0 the meaning of "no limit"; a device without one leaves the bit out.
# Seen: 2026-11-29, here and with QEMU 10.0. Bit 1 is offered, size_max is 0 and seg_max 126. The disk serves a
#   segment of 512 bytes all the same, with the bit accepted. (QEMU 11.1 does not offer the bit any more.)
# Matters: a driver that accepts the bit and keeps to it can send no data at all; one that splits by size_max
#   divides by zero. Leave the bit alone when size_max is 0.
set -eu
. "$(dirname "$0")/lib/common.bash"
deb qemu-system-common=1:7.2+dfsg-7+deb12u18+b3
run qemu-storage-daemon --version | head -n 1

cat >"$T/look.py" <<'X'
import struct, sys
from pathlib import Path

from vhost_user import FrontEnd, daemon

folder = Path(sys.argv[1])
(folder / "disk").write_bytes(bytes(1 << 20))
blockdev = f"driver=file,node-name=disk,filename={folder}/disk"
export = f"type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path={folder}/socket,writable=on"
with daemon(["qemu-storage-daemon", "--blockdev", blockdev, "--export", export]):
    disk = FrontEnd(folder / "socket")
    disk.negotiate(disk.offered & 0b110)
    size_max, seg_max = struct.unpack_from("<II", disk.config(60), 8)
    disk.start()
    print(f"SIZE_MAX offered: {disk.offered >> 1 & 1}, size_max {size_max}, seg_max {seg_max}")
    print(f"a write of one segment of 512 bytes: status {disk.write_sector()}")
X
seen=$(PYTHONPATH=$LIB run python3 "$T/look.py" "$T")
expect "what the disk says, and does" "SIZE_MAX offered: 1, size_max 0, seg_max 126
a write of one segment of 512 bytes: status 0" "$seen"
finish
