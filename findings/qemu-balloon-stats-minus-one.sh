#!/bin/bash
# Software: qemu-system-x86 1:7.2+dfsg-7+deb12u18+b3 (Debian 12)
# Surprise: a balloon statistic that the driver did not send is documented as -1 and comes as 18446744073709551615.
# Documentation: QEMU, docs/interop/virtio-balloon-stats: "If the guest doesn't support a particular stat, or if it
#   couldn't be retrieved, its value will be -1"; before that, "clients first have to enable polling" to query.
# Seen: 2026-11-29, here and with QEMU 10.0 and 11.1. All statistics read 18446744073709551615 (2^64 - 1) in
#   guest-stats, and last-update 0. Nothing had enabled polling, and the query is answered. (JSON has no types; RFC
#   8259, section 6, warns that integers beyond 2^53 are not read alike everywhere.)
# Matters: whoever drives the balloon looks here for what arrived. Test for 2^64 - 1, not for -1 or "less than
#   zero": compared as it is, a statistic that is missing is the largest one.
set -eu
. "$(dirname "$0")/lib/common.bash"
deb qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3 qemu-system-common=1:7.2+dfsg-7+deb12u18+b3 \
    qemu-system-data=1:7.2+dfsg-7+deb12u18

cat >"$T/look.py" <<'X'
from qtest import Qemu

with Qemu("qemu-system-x86_64", "-device", "virtio-balloon-pci,id=b") as qemu:
    print(qemu.version)
    answer = qemu.qmp("qom-get", path="/machine/peripheral/b", property="guest-stats")
    print("values:", *sorted(set(answer["stats"].values())), "last-update:", answer["last-update"])
    interval = qemu.qmp("qom-get", path="/machine/peripheral/b", property="guest-stats-polling-interval")
    print("polling interval:", interval)
X
seen=$(PYTHONPATH=$LIB run python3 "$T/look.py")
printf '%s\n' "$seen" | head -n 1
expect "guest-stats before any driver" "values: 18446744073709551615 last-update: 0
polling interval: 0" "$(printf '%s\n' "$seen" | tail -n +2)"
finish
