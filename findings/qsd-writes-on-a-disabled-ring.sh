#!/bin/bash
# Software: qemu-storage-daemon of QEMU 1:7.2+dfsg-7+deb12u18+b3 (Debian 12)
# Surprise: its vhost-user disk carries out requests, writes too, on a ring that the front end has disabled.
# Documentation: QEMU, docs/interop/vhost-user, "Ring states": "started but disabled: the back-end must process the
#   ring without causing any side effects"; with VHOST_USER_F_PROTOCOL_FEATURES negotiated a ring starts in that
#   state and leaves it by SET_VRING_ENABLE 1.
# Seen: 2026-11-29, here and with QEMU 10.0. Before any SET_VRING_ENABLE, and after SET_VRING_ENABLE 0: a write
#   comes back with status 0 and is in the image.
# Matters: disabling a ring does not hold a disk's requests back. To keep the device still (for a copy of its
#   memory, say), stop kicking and wait for what is out. And a front end that forgets to enable its rings works
#   here, and waits for ever with other back ends.
set -eu
. "$(dirname "$0")/lib/common.bash"
deb qemu-system-common=1:7.2+dfsg-7+deb12u18+b3
run qemu-storage-daemon --version | head -n 1

cat >"$T/look.py" <<'X'
import struct, sys
from pathlib import Path

from vhost_user import GET_FEATURES, SET_VRING_ENABLE, FrontEnd, daemon


def look(title: str, folder: Path, states: tuple[int, ...]) -> None:
    folder.mkdir()
    image = folder / "disk"
    image.write_bytes(bytes(4096))
    blockdev = f"driver=file,node-name=disk,filename={image}"
    export = f"type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path={folder}/socket,writable=on"
    with daemon(["qemu-storage-daemon", "--blockdev", blockdev, "--export", export]):
        disk = FrontEnd(folder / "socket")
        disk.negotiate(0)
        disk.start(enable=False)
        for state in states:
            disk.send(SET_VRING_ENABLE, struct.pack("<II", 0, state))
        disk.ask_u64(GET_FEATURES)  # messages are served in order: what was sent before has been heeded
        status = disk.write_sector()
        print(f"{title}: status {status}, image {image.read_bytes()[:4]}")


top = Path(sys.argv[1])
look("never enabled", top / "a", ())
look("enabled, disabled", top / "b", (1, 0))
X
seen=$(PYTHONPATH=$LIB run python3 "$T/look.py" "$T")
expect "a write on a disabled ring" "never enabled: status 0, image b'xxxx'
enabled, disabled: status 0, image b'xxxx'" "$seen"
finish
