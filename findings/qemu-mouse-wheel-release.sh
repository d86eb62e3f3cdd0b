#!/bin/bash
# Software: qemu-system-x86 1:7.2+dfsg-7+deb12u18+b3 (Debian 12)
# Surprise: virtio-mouse reports the end of a wheel step as the release of a key that was never pressed, and a
#   sideways step, which QMP accepts, as an empty report.
# Documentation: Linux, Documentation/input/event-codes: EV_REL describes relative changes and REL_WHEEL the wheel;
#   EV_KEY values are 1 for a press and 0 for a release; SYN_REPORT separates "changes occurring at the same
#   moment". QEMU, qapi/ui.json: InputButton has wheel-left and wheel-right, input-send-event sends "input event(s)
#   to guest".
# Seen: 2026-11-29, here and with QEMU 10.0 and 11.1. wheel-up down: REL_WHEEL 1; wheel-up up: EV_KEY 0x151
#   (BTN_GEAR_UP) 0, alone. wheel-left, both ways: {} from QMP and a SYN_REPORT with nothing before it. The device
#   offers no REL_HWHEEL, and does offer keys 0x150 and 0x151, which never go down.
# Matters: a key state that is counted (presses minus releases) goes negative; a recorder sees a release without a
#   press; "one report, one change" does not hold.
set -eu
. "$(dirname "$0")/lib/common.bash"
deb qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3 qemu-system-common=1:7.2+dfsg-7+deb12u18+b3 \
    qemu-system-data=1:7.2+dfsg-7+deb12u18

cat >"$T/look.py" <<'X'
import struct

from qtest import Qemu, Virtio

EVENTS = 0x200000  # eight bytes each
with Qemu("qemu-system-x86_64", "-device", "virtio-mouse-pci,addr=5") as qemu:
    print(qemu.version)
    mouse = Virtio(qemu, 5)
    mouse.negotiate(1 << 32)
    ring = mouse.queue(0, 0x100000, 64)
    for number in range(32):
        ring.add((EVENTS + 8 * number, 8, True), head=number)
    mouse.ready()
    ring.kick()
    for button in ("left", "wheel-up", "wheel-down", "wheel-left"):
        for down in (True, False):
            event = {"type": "btn", "data": {"down": down, "button": button}}
            answer = qemu.qmp("input-send-event", events=[event])
            seen = [struct.unpack("<HHi", qemu.load(EVENTS + 8 * head, 8)) for head, _ in ring.used()]
            print(button, "down" if down else "up", answer, *(f"({t}, {c:#x}, {v})" for t, c, v in seen))
X
seen=$(PYTHONPATH=$LIB run python3 "$T/look.py")
printf '%s\n' "$seen" | head -n 1
expect "QMP's answer, and the events (type, code, value)" "left down {} (1, 0x110, 1) (0, 0x0, 0)
left up {} (1, 0x110, 0) (0, 0x0, 0)
wheel-up down {} (2, 0x8, 1) (0, 0x0, 0)
wheel-up up {} (1, 0x151, 0) (0, 0x0, 0)
wheel-down down {} (2, 0x8, -1) (0, 0x0, 0)
wheel-down up {} (1, 0x150, 0) (0, 0x0, 0)
wheel-left down {} (0, 0x0, 0)
wheel-left up {} (0, 0x0, 0)" "$(printf '%s\n' "$seen" | tail -n +2)"
finish
