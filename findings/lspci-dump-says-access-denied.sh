#!/bin/bash
# Software: pciutils 1:3.9.0-4 (Debian 12), and its libpci3
# Surprise: for a dump that `lspci -x` wrote, lspci says that access to the capabilities was denied, and setpci
#   that there are none. Neither knows.
# Documentation: lspci(8): -x dumps "the standard part of the configuration space (the first 64 bytes ...)"; -F
#   reads a file "produced by an earlier run of lspci -x", for user-supplied bug reports. pcilib(7): the access
#   method `dump` reads such a file. PCI Local Bus 3.0, section 6.7: bit 4 of Status says that there is a
#   capability list.
# Seen: 2026-11-29. With a virtio-input function whose Status has bit 4: `Capabilities: <access denied>` from lspci
#   (exit code 0), and from setpci, asked for the vendor capability, "there are no capabilities with that id".
# Matters: a report with `lspci -x` looks as if its author had lacked a right, or as if the function were not
#   virtio 1.x. Ask for -xxx, which has the virtio capabilities (they lie behind byte 64). An ordinary user's
#   setpci says the same, for the same reason: the kernel shows that user 64 bytes.
set -eu
. "$(dirname "$0")/lib/common.bash"
deb pciutils=1:3.9.0-4 libpci3=1:3.9.0-4 pci.ids=0.0~2023.04.11-1
run lspci --version

cat >"$T/dump" <<'X'
00:05.0 Keyboard controller: Red Hat, Inc. Virtio 1.0 input (rev 01)
00: f4 1a 52 10 06 00 10 00 01 00 00 09 00 00 00 00
10: 00 00 00 00 00 00 00 fe 00 00 00 00 00 00 00 00
20: 0c 00 00 fd 00 00 00 00 00 00 00 00 f4 1a 00 11
30: 00 00 00 00 40 00 00 00 00 00 00 00 0b 01 00 00

X
# The same function with its first virtio capability (common configuration, BAR 4), as `lspci -xxx` has it.
sed '/^30/a\
40: 09 00 10 01 04 00 00 00 00 00 00 00 00 10 00 00' "$T/dump" >"$T/dump-xxx"

lspci() {
    run lspci -i "$ROOT/usr/share/misc/pci.ids" "$@" 2>/dev/null || echo "exit code $?"
}
setpci() {
    run setpci -A dump -O dump.name="$1" -s 0:5.0 CAP_VNDR+3.b 2>&1 || echo "exit code $?"
}
expect "lspci on the dump of lspci -x" "	Status: Cap+
	Capabilities: <access denied>" "$(lspci -vv -F "$T/dump" | grep -o -E '^.Status: Cap.|^.Capabilities.*')"
expect "setpci on it" \
    "setpci: 0000:00:05.0: Instance #0 of Capability 0009 not found - there are no capabilities with that id.
exit code 1" "$(setpci "$T/dump")"
expect "lspci on that of lspci -xxx" "	Capabilities: [40] Vendor Specific Information: VirtIO: CommonCfg" \
    "$(lspci -vv -F "$T/dump-xxx" | grep '^.Capabilities')"
expect "setpci on it: type 1" "01" "$(setpci "$T/dump-xxx")"
finish
