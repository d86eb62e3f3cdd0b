#!/bin/bash
# Software: python3-evdev 1.6.1+dfsg-1+b2 (Debian 12), evdev-binary 2.0.0 (Python package), on umockdev 0.17.16-1
# Surprise: InputDevice.repeat has the repeat period in milliseconds where a rate in characters per second (or
#   minute) is documented, and in 1.6.1 the two fields under each other's names.
# Documentation: python-evdev, KbdInfo: `repeat` is the "Keyboard repeat rate in characters per second", `delay`
#   the time before the first repetition in milliseconds (InputDevice.repeat of 1.6.1: "characters per minute").
#   linux/input.h: EVIOCGREP fills two values, REP_DELAY 0 and REP_PERIOD 1, both in milliseconds.
# Seen: 2026-11-29. For a keyboard with a delay of 250 ms and a period of 33 ms (30 characters per second): 1.6.1
#   says repeat 250, delay 33; 2.0.0 says repeat 33, delay 250.
# Matters: a virtio keyboard that offers EV_REP gets these two by EVIOCSREP. A clone that copies them from .repeat
#   by name gets it wrong between versions; one that converts from a rate gets a period of 1000 / 33 = 30. Copy the
#   tuple.
set -eu
. "$(dirname "$0")/lib/common.bash"
deb python3-evdev=1.6.1+dfsg-1+b2 umockdev=0.17.16-1 libumockdev0=0.17.16-1
pip "$T/wheel" evdev-binary==2.0.0

mock_input
# What the kernel answers for a keyboard with EV_KEY and EV_REP: umockdev's record of ioctls.
python3 - >"$T/ioctls" <<'X'
def line(name: str, result: int, data: bytes, length: int) -> None:
    print(name, result, data.ljust(length, b"\0").hex().upper())


print("@DEV /dev/input/event7")
line("EVIOCGID", 0, bytes([6, 0, 0x27, 6, 1, 0, 1, 0]), 8)
line("EVIOCGVERSION", 0, bytes([1, 0, 1]), 4)
line("EVIOCGNAME(0)", 9, b"Keyboard", 256)
line("EVIOCGPHYS(0)", 1, b"", 256)
line("EVIOCGUNIQ(0)", 1, b"", 256)
line("EVIOCGBIT(0)", 4, bytes([0x03, 0, 0x10]), 4)
line("EVIOCGBIT(1)", 96, bytes([0xFE]), 96)
line("EVIOCGBIT(20)", 8, bytes([3]), 96)
line("EVIOCGREP", 0, bytes([250, 0, 0, 0, 33, 0, 0, 0]), 8)
line("EVIOCGEFFECTS", 0, b"", 4)
X
cat >"$T/look.py" <<'X'
import sys

sys.path.insert(0, sys.argv[1])
import evdev

print(repr(evdev.InputDevice("/dev/input/event7").repeat))
X
for folder in "$ROOT/usr/lib/python3/dist-packages" "$T/wheel"; do
    run umockdev-run -d "$T/device" -i /dev/input/event7="$T/ioctls" -- /usr/bin/python3 -I "$T/look.py" "$folder"
done >"$T/seen"
expect "InputDevice.repeat of 1.6.1 and of 2.0.0" "KbdInfo(repeat=250, delay=33)
KbdInfo(delay=250, repeat=33)" "$(cat "$T/seen")"
finish
