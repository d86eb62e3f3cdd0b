#!/bin/bash
# Software: libevdev2 1.13.0+dfsg-1 (Debian 12)
# Surprise: libevdev_event_code_from_name() answers -1 for names that linux/input-event-codes.h has: BTN_MOUSE,
#   KEY_SCREENLOCK, SW_RADIO and others that are a second name of a code; for other second names it does answer.
# Documentation: libevdev.h: it looks up "an event code by its type and name" and returns "the given code constant
#   for the passed name or -1 if not found"; the names are those of the kernel's header, with their prefix.
# Seen: 2026-11-29. KEY_SCREENLOCK, BTN_MOUSE, BTN_MISC, KEY_WIMAX, SW_RADIO: -1; BTN_A (second name of BTN_SOUTH):
#   304.
# Matters: names typed by a person, or written by a tool that prints the header's first name (BTN_MOUSE stands
#   before BTN_LEFT there, and both are 272), are refused by tools on libevdev. Send codes, or the name that
#   libevdev_event_code_get_name() gives for the code.
set -eu
. "$(dirname "$0")/lib/common.bash"
deb libevdev2=1.13.0+dfsg-1

cat >"$T/look.py" <<'X'
import ctypes

EV_KEY, EV_SW = 1, 5
NAMES = [  # as linux/input-event-codes.h defines them; codes are ABI and do not change
    (EV_KEY, "KEY_SCREENLOCK", 152),
    (EV_KEY, "BTN_MOUSE", 0x110),
    (EV_KEY, "BTN_MISC", 0x100),
    (EV_KEY, "KEY_WIMAX", 246),
    (EV_SW, "SW_RADIO", 3),
    (EV_KEY, "BTN_A", 0x130),
]
library = ctypes.CDLL("libevdev.so.2")
library.libevdev_event_code_get_name.restype = ctypes.c_char_p
for kind, name, code in NAMES:
    answer = library.libevdev_event_code_from_name(kind, name.encode())
    known = library.libevdev_event_code_get_name(kind, code).decode()
    print(f"{name} ({code}): {answer}; {code} is called {known}")
X
seen=$(run python3 "$T/look.py")
expect "names of linux/input-event-codes.h, libevdev's answer, and its own name" \
    "KEY_SCREENLOCK (152): -1; 152 is called KEY_COFFEE
BTN_MOUSE (272): -1; 272 is called BTN_LEFT
BTN_MISC (256): -1; 256 is called BTN_0
KEY_WIMAX (246): -1; 246 is called KEY_WWAN
SW_RADIO (3): -1; 3 is called SW_RFKILL_ALL
BTN_A (304): 304; 304 is called BTN_SOUTH" "$seen"
finish
