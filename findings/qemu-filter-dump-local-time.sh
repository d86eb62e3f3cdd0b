#!/bin/bash
# Software: qemu-system-x86 1:7.2+dfsg-7+deb12u18+b3 (Debian 12)
# Surprise: the times in a capture of QEMU's filter-dump are wrong by the time zone that QEMU runs in, and follow
#   -rtc.
# Documentation: qemu-system(1), -object filter-dump: "The file format is libpcap, so it can be analyzed with tools
#   such as tcpdump or Wireshark". pcap-savefile(5): the time stamp of a packet is in seconds since January 1,
#   1970, 00:00:00 UTC. Nothing there mentions the time zone or the machine's clock.
# Seen: 2026-11-29, here and with QEMU 10.0 and 11.1. With TZ=JST-9 (UTC + 9) a frame is stamped 9 hours early,
#   with TZ=EST5 5 hours late, in UTC right; with -rtc base=2000-01-01 in the year 2000; with -rtc base=localtime
#   right again.
# Matters: a capture of a virtio-net device is laid beside logs of the driver or a capture from another place; they
#   do not fit, by whole hours, and only on machines that do not run in UTC. Start QEMU with TZ=UTC0.
set -eu
. "$(dirname "$0")/lib/common.bash"
deb qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3 qemu-system-common=1:7.2+dfsg-7+deb12u18+b3 \
    qemu-system-data=1:7.2+dfsg-7+deb12u18

cat >"$T/look.py" <<'X'
import os, socket, struct, sys, time
from pathlib import Path

from qtest import Qemu, Virtio

FRAME = b"\x52\x54\0\x12\x34\x56" * 2 + b"\x88\xb5" + b"x" * 46


def look(zone: str, capture: Path, *rtc: str) -> None:
    os.environ["TZ"] = zone
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    arguments = ["-netdev", f"dgram,id=n,local.type=fd,local.str={theirs.fileno()}"]
    arguments += ["-object", f"filter-dump,id=d,netdev=n,file={capture}"]
    arguments += ["-device", "virtio-net-pci,netdev=n,addr=5,romfile="]
    with Qemu("qemu-system-x86_64", *arguments, *rtc, pass_fds=(theirs.fileno(),)) as qemu:
        net = Virtio(qemu, 5)
        net.negotiate(1 << 32)
        net.queue(0, 0x100000, 8)
        transmit = net.queue(1, 0x200000, 8)
        net.ready()
        qemu.store(0x300000, bytes(12) + FRAME)
        transmit.add((0x300000, 12 + len(FRAME), False))
        now = time.time()
        transmit.kick()
        transmit.wait()
        qemu.qmp("object-del", id="d")
    magic, *_, linktype = struct.unpack_from("<IHHiIII", data := capture.read_bytes())
    seconds, _, captured, _ = struct.unpack_from("<IIII", data, 24)
    assert (magic, linktype, data[40 : 40 + captured]) == (0xA1B2C3D4, 1, FRAME)
    off = (seconds - now) / 3600
    year = time.gmtime(seconds).tm_year
    print(zone, *rtc, "year 2000" if year == 2000 else f"hours off: {round(off)}")


top = Path(sys.argv[1])
look("UTC0", top / "1")
look("JST-9", top / "2")
look("EST5", top / "3")
look("UTC0", top / "4", "-rtc", "base=2000-01-01T12:00:00")
look("JST-9", top / "5", "-rtc", "base=localtime")
X
seen=$(LIMIT=90 PYTHONPATH=$LIB run python3 "$T/look.py" "$T")
expect "how far the stamp of a frame is from the time at which it was sent" "UTC0 hours off: 0
JST-9 hours off: -9
EST5 hours off: 5
UTC0 -rtc base=2000-01-01T12:00:00 year 2000
JST-9 -rtc base=localtime hours off: 0" "$seen"
finish
