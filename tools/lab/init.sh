#!/bin/busybox sh
# First program of the lab VM, in the initramfs: put the host's root, read-only over 9p, under a tmpfs
# overlay and go on in it with stage2.sh. The share /run/lab has what to do, and takes what came of it.
bb=/bin/busybox
die() {
    echo "lab: $*" >/dev/console
    $bb poweroff -f
}

$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs dev /dev
for module in /lab/modules/*.ko; do
    $bb insmod "$module" || die "insmod $module failed"
done

$bb mkdir -p /ro /rw /new /host
p9=trans=virtio,version=9p2000.L,msize=262144
$bb mount -t 9p -o $p9,ro,cache=loose hostroot /ro || die "no host root"
$bb mount -t tmpfs -o mode=755 tmpfs /rw
$bb mkdir -m 755 /rw/upper /rw/work
$bb mount -t overlay -o lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work overlay /new || die "no overlay"

# /run and /tmp are the guest's own: sockets, locks and journals of the host mean nothing here. But the
# checkout, the environment or the cache may lie below them, so keep a way to what they hide.
$bb mkdir -p /host/run /host/tmp
for top in run tmp; do
    $bb mount --bind /new/$top /host/$top
    $bb mount -t tmpfs -o mode=1777 tmpfs /new/$top
done
$bb chmod 755 /new/run
$bb mkdir -p /new/run/lab
$bb mount -t 9p -o $p9,access=any,cache=none share /new/run/lab || die "no share"
while read -r path; do
    case $path in
        /run/* | /tmp/*)
            $bb mkdir -p "/new$path"
            $bb mount --bind "/host$path" "/new$path" || die "cannot keep $path"
            ;;
    esac
    # An ordinary user of the guest has to get there, even below a home that is closed on the host.
    while [ "$path" != / ]; do
        path=$($bb dirname "$path")
        $bb chmod a+x "/new$path" 2>/dev/null
    done
done </new/run/lab/keep

# This kernel's modules, not the host's (whose folder may not even be there).
read -r modules </new/run/lab/modules
$bb mkdir -p /new/usr/lib/modules
$bb mount --bind "/new$modules" /new/usr/lib/modules || die "no modules"

# On a tmpfs, because they are needed to the very end; and busybox knows itself only by this name.
$bb cp /bin/busybox /new/run/busybox
$bb cp /new/run/lab/stage2.sh /new/run/stage2.sh

for top in proc sys dev; do
    $bb mount --move /$top /new/$top
done
exec $bb switch_root /new /run/busybox sh /run/stage2.sh
