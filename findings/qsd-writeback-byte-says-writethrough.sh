#!/bin/bash
# Software: qemu-storage-daemon of QEMU 1:7.2+dfsg-7+deb12u18+b3 (Debian 12)
# Surprise: its vhost-user disk caches writes by default, and its configuration says that it writes through.
# Documentation: virtio 1.4, section 5.2.5: with VIRTIO_BLK_F_CONFIG_WCE the driver reads the cache mode from
#   `writeback` after feature negotiation: 0 is a writethrough cache, which commits writes to storage before it
#   reports them complete. QEMU's block-export-add reference: writethrough, "caches are flushed after every write",
#   is false by default.
# Seen: 2026-11-29, here and with QEMU 10.0. `writeback` is 0 with and without writethrough=on. A block node that
#   logs what passes (blklogwrites) sees three writes and no flush before the daemon's end by default; with
#   writethrough=on, or once the driver has written 0 over the 0, it sees flushes between the writes.
# Matters: a driver that goes by the byte sends no FLUSH and believes its data to be on the disk. Write `writeback`
#   once (0 or 1) before trusting it, or flush whatever it says.
set -eu
. "$(dirname "$0")/lib/common.bash"
deb qemu-system-common=1:7.2+dfsg-7+deb12u18+b3
run qemu-storage-daemon --version | head -n 1

cat >"$T/look.py" <<'X'
import struct, sys
from pathlib import Path

from vhost_user import FrontEnd, daemon

SET_CONFIG, WRITEBACK = 25, 32  # the message; the offset of the byte
FLUSH, CONFIG_WCE = 1 << 9, 1 << 11


def look(title: str, folder: Path, options: str, written: int | None) -> None:
    folder.mkdir()
    (folder / "disk").write_bytes(bytes(4096))
    (folder / "log").write_bytes(bytes(1 << 20))
    command = ["qemu-storage-daemon"]
    command += ["--blockdev", f"driver=file,node-name=disk,filename={folder}/disk"]
    command += ["--blockdev", f"driver=file,node-name=log,filename={folder}/log"]
    command += ["--blockdev", "driver=blklogwrites,node-name=both,file=disk,log=log"]
    export = f"type=vhost-user-blk,id=e,node-name=both,addr.type=unix,addr.path={folder}/socket,writable=on"
    with daemon([*command, "--export", export + options]):
        disk = FrontEnd(folder / "socket")
        assert disk.offered & FLUSH and disk.offered & CONFIG_WCE
        disk.negotiate(FLUSH | CONFIG_WCE)
        if written is not None:
            disk.send(SET_CONFIG, struct.pack("<III", WRITEBACK, 1, 0) + bytes([written]))
        says = disk.config(60)[WRITEBACK]
        disk.start()
        for _ in range(3):
            assert disk.write_sector() == 0
        disk.socket.close()
    # The log: a superblock (magic, version, number of entries, sector size), then entries of one sector
    # (sector, number of sectors, flags, length of data), each followed by its data.
    log = (folder / "log").read_bytes()
    entries, sector = struct.unpack_from("<QI", log, 16)
    place, kinds = sector, ""
    for _ in range(entries):
        _, count, flags = struct.unpack_from("<QQQ", log, place)
        kinds += "F" if flags & 1 else "W"
        place += sector * (1 + count)
    between = "F" in kinds.rstrip("F")  # what comes after the last write is the daemon's own, at its end
    print(f"{title}: writeback {says}, {kinds.count('W')} writes, flushed in between: {'yes' if between else 'no'}")


top = Path(sys.argv[1])
look("default", top / "a", "", None)
look("writethrough=on", top / "b", ",writethrough=on", None)
look("default, driver writes 0", top / "c", "", 0)
look("default, driver writes 1", top / "d", "", 1)
X
seen=$(LIMIT=60 PYTHONPATH=$LIB run python3 "$T/look.py" "$T")
expect "what the byte says, and what the log has" "default: writeback 0, 3 writes, flushed in between: no
writethrough=on: writeback 0, 3 writes, flushed in between: yes
default, driver writes 0: writeback 0, 3 writes, flushed in between: yes
default, driver writes 1: writeback 1, 3 writes, flushed in between: no" "$seen"
finish
