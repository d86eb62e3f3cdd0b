#!/bin/bash
# Software: udev 252.39-1~deb12u2 (Debian 12): systemd-hwdb and its database
# Surprise: the database calls the vendor of a virtio-mmio window (ACPI LNRO0005) "Linear Systems Ltd.", although
#   it has the right record for LNRO, "Linaro, Ltd.".
# Documentation: hwdb(7): a match is a glob over the whole lookup string, and of records in one file that match,
#   the later has the higher priority. ACPI 6.5, section 6.1.5: an _HID is a PNP identifier of three letters and
#   four hexadecimal digits, or an ACPI identifier of four characters and four digits; LNRO0005 is of the second
#   kind.
# Seen: 2026-11-29. 20-acpi-vendor.hwdb has `acpi:LNRO*:` and, later, `acpi:LNR*:` for the PNP vendor LNR. The
#   second glob matches `acpi:LNRO0005:` too, comes later, and wins. LNRZ0005, of a vendor that it does not know,
#   is taken in likewise.
# Matters: ID_VENDOR_FROM_DATABASE of the platform device is what tools print beside the window's name. Do not
#   filter virtio-mmio windows of ACPI by vendor; the identifier LNRO0005 itself is the key.
set -eu
. "$(dirname "$0")/lib/common.bash"
deb udev=252.39-1~deb12u2
run systemd-hwdb --version | head -n 1

records=$(grep -h -A 1 '^acpi:LNR' "$ROOT/lib/udev/hwdb.d/20-acpi-vendor.hwdb" | cut -d= -f2 | grep -v '^--')
run systemd-hwdb --root="$ROOT" update

expect "the records, in their order" "acpi:LNRO*:
Linaro, Ltd.
acpi:LNR*:
Linear Systems Ltd." "$records"
expect "systemd-hwdb query acpi:LNRO0005:" "ID_VENDOR_FROM_DATABASE=Linear Systems Ltd." \
    "$(run systemd-hwdb --root="$ROOT" query acpi:LNRO0005:)"
expect "systemd-hwdb query acpi:LNRZ0005:" "ID_VENDOR_FROM_DATABASE=Linear Systems Ltd." \
    "$(run systemd-hwdb --root="$ROOT" query acpi:LNRZ0005:)"
finish
