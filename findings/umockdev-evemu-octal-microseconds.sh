#!/bin/bash
# Software: umockdev 0.17.16-1 (Debian 12)
# Surprise: umockdev-run takes the microseconds of an evemu recording for octal when they begin with a zero.
# Documentation: evemu's README, "Event Data Format": `E: <sec>.<usec> <evtype (hex)> <evcode (hex)> <ev value>`;
#   what is hexadecimal is marked so, and evemu-record prints the microseconds as six decimal digits (0.050000 is
#   50 ms). umockdev-run(1), --evemu-events: "Load an evemu .events file".
# Seen: 2026-11-29. A release that was recorded 50 ms after its press comes 20.480 ms after it (050000 in octal);
#   1.077000 becomes 1.032256, and 1.080000, which is no octal number, becomes 1.000000: time runs backwards.
# Matters: events of virtio-input that are written in evemu's format keep their times in evemu-play, not here. A
#   test of gestures, of key repeat or of debouncing that replays them sees other intervals than were recorded.
set -eu
. "$(dirname "$0")/lib/common.bash"
deb umockdev=0.17.16-1 libumockdev0=0.17.16-1
run umockdev-run --version

mock_input
cat >"$T/events" <<'X'
E: 0.000000 0001 001e 1
E: 0.050000 0001 001e 0
E: 0.250000 0001 001e 1
E: 1.077000 0001 001e 0
E: 1.080000 0001 001e 1
X
cat >"$T/times.py" <<'X'
import os, struct

fd = os.open("/dev/input/event7", os.O_RDONLY)
for _ in range(5):
    seconds, microseconds, *rest = struct.unpack("qqHHi", os.read(fd, 24))  # struct input_event, 64 bits
    print(f"{seconds}.{microseconds:06}")
X
seen=$(run umockdev-run -d "$T/device" -e /dev/input/event7="$T/events" -- python3 -I "$T/times.py")

expect "times of the five events recorded at 0.000000 0.050000 0.250000 1.077000 1.080000" \
    "0.000000
0.020480
0.250000
1.032256
1.000000" "$seen"
finish
