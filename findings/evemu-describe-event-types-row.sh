#!/bin/bash
# Software: evemu-tools 2.7.0-3, libevdev2 1.13.0+dfsg-1 (Debian 12), on umockdev 0.17.16-1
# Surprise: row 00 of an evemu description, which stands for the event types, is 0b whatever the device has.
# Documentation: evemu's README: there is a `B:` line "for each index from 0 to EV_CNT", the bytes of its bitmap.
#   The bitmap of index 0 that the kernel gives, EVIOCGBIT(0) of linux/input.h, has the event types.
# Seen: 2026-11-29. A keyboard with EV_SYN, EV_KEY, EV_MSC, EV_LED and EV_REP (EVIOCGBIT(0) = 13 00 12 00) is
#   described as `B: 00 0b 00 00 ...`: the bits of SYN_REPORT, SYN_CONFIG and SYN_DROPPED. Read as types they say
#   SYN, KEY and ABS, and no LED, MSC or REP.
# Matters: whoever fills virtio-input's EV_BITS from a description must take the types from the other rows that are
#   not empty, and nothing from row 00.
set -eu
. "$(dirname "$0")/lib/common.bash"
deb evemu-tools=2.7.0-3 libevemu3=2.7.0-3 libevdev2=1.13.0+dfsg-1 umockdev=0.17.16-1 libumockdev0=0.17.16-1

mock_input
python3 - >"$T/ioctls" <<'X'
def line(name: str, result: int, data: bytes, *lengths: int) -> None:
    for length in lengths:  # as libevdev and evemu ask for it
        print(name, result, data.ljust(length, b"\0").hex().upper())


print("@DEV /dev/input/event7")
line("EVIOCGID", 0, bytes([6, 0, 0x27, 6, 1, 0, 1, 0]), 8)
line("EVIOCGVERSION", 0, bytes([1, 0, 1]), 4)
line("EVIOCGNAME(0)", 9, b"Keyboard", 255, 256)
line("EVIOCGPHYS(0)", 1, b"", 255, 256)
line("EVIOCGUNIQ(0)", 1, b"", 255, 256)
line("EVIOCGPROP(0)", 8, b"", 8)
line("EVIOCGBIT(0)", 8, bytes([0x13, 0, 0x12]), 8)
line("EVIOCGBIT(1)", 96, bytes([0xFE]), 96)
line("EVIOCGBIT(4)", 8, bytes([0x10]), 8)
line("EVIOCGBIT(17)", 8, bytes([7]), 8)
for kind, length in ((2, 8), (3, 8), (5, 8), (18, 8), (21, 16)):
    line(f"EVIOCGBIT({kind})", length, b"", length)
line("EVIOCGREP", 0, bytes([250, 0, 0, 0, 33, 0, 0, 0]), 8)
line("EVIOCGKEY(0)", 96, b"", 96)
line("EVIOCGLED(0)", 8, b"", 8)
line("EVIOCGSW(0)", 8, b"", 8)
X
seen=$(run umockdev-run -d "$T/device" -i /dev/input/event7="$T/ioctls" -- evemu-describe /dev/input/event7)
expect "the rows 00, 04 and 11 (LED), and the event types in the comments" "B: 00 0b 00 00 00 00 00 00 00
B: 04 10 00 00 00 00 00 00 00
B: 11 07 00 00 00 00 00 00 00
#   Event type 0 (EV_SYN)
#   Event type 1 (EV_KEY)
#   Event type 4 (EV_MSC)
#   Event type 17 (EV_LED)
#   Event type 20 (EV_REP)" "$(printf '%s\n' "$seen" | grep -E '^B: (00|04|11)' &&
    printf '%s\n' "$seen" | grep '^#   Event type')"
finish
