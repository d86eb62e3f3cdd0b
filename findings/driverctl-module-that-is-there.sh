#!/bin/bash
# Software: driverctl 0.111-1 (Debian 12)
# Surprise: driverctl does not see that vfio-pci is in the kernel, and refuses with "no such module" where modprobe
#   cannot help.
# Documentation: driverctl(8), set-override: "the new driver is loaded into kernel, bound". Linux,
#   Documentation/ABI (sysfs-module) and modprobe(8): /sys/module has a folder for each module in the kernel, and a
#   dash of its name is an underscore there.
# Seen: 2026-11-29, on a made-up /sys with /sys/module/vfio_pci and its driver, and no /lib/modules: "no such
#   module: vfio-pci", exit code 1, override not set. driverctl looks for /sys/module/vfio-pci, which no kernel
#   has. With uio_pci_generic, whose name has no dash, the same command works.
# Matters: it is the tool that `uvirtio bind --persist` hands over to. Where the driver is built in, or modules are
#   in another place or out of reach (a container), uvirtio can bind what driverctl cannot keep.
set -eu
. "$(dirname "$0")/lib/common.bash"
deb driverctl=0.111-1
unshare -Urm true 2>"$T/unshare" || cannot "no user namespaces: $(cat "$T/unshare")"

# In a name space of its own the script gets a /sys of plain files. Its root is root of nothing else: no module can be
# loaded, and nothing of this machine's /sys is there.
cat >"$T/inside" <<'X'
set -eu
mount -t tmpfs none /sys
for folder in /lib/modules /usr/lib/modules; do
    [ ! -d "$folder" ] || mount -t tmpfs none "$folder"
done
device=/sys/devices/pci0000:00/0000:00:05.0
mkdir -p $device /sys/bus/pci/devices /sys/bus/pci/drivers/vfio-pci /sys/bus/pci/drivers/uio_pci_generic
mkdir -p /sys/bus/pci/drivers/virtio-pci /sys/module/vfio_pci /sys/module/uio_pci_generic /sys/module/virtio_pci
ln -s ../../../devices/pci0000:00/0000:00:05.0 /sys/bus/pci/devices/
ln -s ../../../bus/pci/drivers/virtio-pci $device/driver
echo "(null)" >$device/driver_override
for driver in vfio-pci uio_pci_generic; do
    code=0
    "$1" --nosave -v set-override 0000:00:05.0 $driver 2>&1 || code=$?
    echo "exit code $code, driver_override $(cat $device/driver_override)"
done
X
seen=$(run unshare -Urm bash "$T/inside" "$ROOT/usr/sbin/driverctl")
expect "set-override with vfio-pci, and with uio_pci_generic" \
    "driverctl: setting driver override for 0000:00:05.0: vfio-pci
driverctl: loading driver vfio-pci
driverctl: no such module: vfio-pci
exit code 1, driver_override (null)
driverctl: setting driver override for 0000:00:05.0: uio_pci_generic
driverctl: unbinding previous driver virtio-pci
driverctl: reprobing driver for 0000:00:05.0
exit code 0, driver_override uio_pci_generic" "$seen"
finish
