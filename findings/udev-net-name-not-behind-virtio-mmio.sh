#!/bin/bash
# Software: udev 252.39-1~deb12u2 (Debian 12), on umockdev 0.17.16-1
# Surprise: a virtio network interface gets a name after its place behind PCI, and none behind a virtio-mmio window
#   of ACPI, although that form of name exists and fits.
# Documentation: systemd.net-naming-scheme(7): ID_NET_NAME_PATH is `prefix avendor model iinstance` for "ACPI path
#   names for ARM64 platform devices"; a virtio-mmio window of arm64 with ACPI is the platform device LNRO0005:NN.
# Seen: 2026-11-29. Behind PCI the virtio device between function and interface is passed over: enp0s5. Behind
#   LNRO0005:03 it is not, and only the name after the MAC address is there. An interface directly on LNRO0005:05,
#   which no driver makes, would be enalnro5i5.
# Matters: with virtio-mmio the interface stays eth0, eth1, ... in the order in which the kernel found the windows;
#   after a window was taken and given back, the numbers may be others. Go by the window, not by the interface's
#   name.
set -eu
. "$(dirname "$0")/lib/common.bash"
deb udev=252.39-1~deb12u2 umockdev=0.17.16-1 libumockdev0=0.17.16-1
run udevadm --version

interface() { # PATH INDEX
    cat <<X
P: $1
E: INTERFACE=eth$2
E: IFINDEX=$2
E: SUBSYSTEM=net
A: address=52:54:00:12:34:5$2
A: addr_assign_type=0
A: type=1
A: ifindex=$2
A: iflink=$2
A: dev_port=0
A: dev_id=0x0

X
}
parent() { # PATH SUBSYSTEM
    printf 'P: %s\nE: SUBSYSTEM=%s\n\n' "$1" "$2"
}
{
    interface /devices/pci0000:00/0000:00:05.0/virtio0/net/eth2 2
    parent /devices/pci0000:00/0000:00:05.0/virtio0 virtio
    parent /devices/pci0000:00/0000:00:05.0 pci
    interface /devices/platform/LNRO0005:03/virtio1/net/eth3 3
    parent /devices/platform/LNRO0005:03/virtio1 virtio
    parent /devices/platform/LNRO0005:03 platform
    interface /devices/platform/LNRO0005:05/net/eth4 4
    parent /devices/platform/LNRO0005:05 platform
} >"$T/devices"
for number in 2 3 4; do
    run umockdev-run -d "$T/devices" -- \
        env NET_NAMING_SCHEME=v252 udevadm test-builtin net_id "/sys/class/net/eth$number" 2>/dev/null |
        grep '^ID_NET_NAME_'
done >"$T/seen"
expect "names of an interface behind PCI, behind a window, and on a platform device itself" \
    "ID_NET_NAME_MAC=enx525400123452
ID_NET_NAME_PATH=enp0s5
ID_NET_NAME_MAC=enx525400123453
ID_NET_NAME_MAC=enx525400123454
ID_NET_NAME_PATH=enalnro5i5" "$(cat "$T/seen")"
finish
