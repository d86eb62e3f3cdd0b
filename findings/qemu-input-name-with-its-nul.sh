#!/bin/bash
# Software: qemu-system-x86 1:7.2+dfsg-7+deb12u18+b3 (Debian 12)
# Surprise: the name of QEMU's virtio-input devices ends in a NUL that counts in `size`; the serial does not.
# Documentation: virtio 1.4, section 5.8.4: the driver looks at `size` to see how much there is, and "Strings do
#   not include a NUL terminator."
# Seen: 2026-11-29, here and with QEMU 10.0 and 11.1. "QEMU Virtio Mouse" has 17 characters and size 18, the
#   keyboard's and the tablet's names likewise; the serial `abc` has size 3.
# Matters: a driver that takes size bytes, as it is told to, gets a name that ends in \0: it is unequal to the name
#   that the kernel's driver shows, prints a NUL, and is refused where NUL is. Take what stands before the first
#   NUL.
set -eu
. "$(dirname "$0")/lib/common.bash"
deb qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3 qemu-system-common=1:7.2+dfsg-7+deb12u18+b3 \
    qemu-system-data=1:7.2+dfsg-7+deb12u18

cat >"$T/look.py" <<'X'
from qtest import Qemu, Virtio

NAME, SERIAL = 1, 2
devices = {5: "keyboard", 6: "mouse", 7: "tablet"}
arguments = []
for slot, kind in devices.items():
    arguments += ["-device", f"virtio-{kind}-pci,addr={slot},serial=abc"]
with Qemu("qemu-system-x86_64", *arguments) as qemu:
    print(qemu.version)
    for slot in devices:
        device = Virtio(qemu, slot)
        device.negotiate(1 << 32)
        for select in (NAME, SERIAL):
            qemu.write(1, device.device, select)
            qemu.write(1, device.device + 1, 0)
            size = qemu.read(1, device.device + 2)
            print(size, qemu.load(device.device + 8, size))
X
seen=$(PYTHONPATH=$LIB run python3 "$T/look.py")
printf '%s\n' "$seen" | head -n 1
expect "size and string of name and serial" "21 b'QEMU Virtio Keyboard\\x00'
3 b'abc'
18 b'QEMU Virtio Mouse\\x00'
3 b'abc'
19 b'QEMU Virtio Tablet\\x00'
3 b'abc'" "$(printf '%s\n' "$seen" | tail -n +2)"
finish
