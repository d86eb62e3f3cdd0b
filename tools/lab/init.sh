#!/bin/busybox sh
# First program of the lab VM, in the initramfs: put the host's root, read-only over 9p, under a tmpfs
# overlay and go on in it with stage2.sh. The share /run/lab has what to do, and takes what came of it.
# A guest whose CPU is of another architecture has a root of its own instead (the kernel's command line names it),
# and of the host's only what the share lists.
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
root=hostroot
for word in $($bb cat /proc/cmdline); do
    case $word in uvirtio.root=*) root=${word#*=} ;; esac
done
$bb mount -t 9p -o $p9,ro,cache=loose $root /ro || die "no root"
$bb mount -t tmpfs -o mode=755 tmpfs /rw
$bb mkdir -m 755 /rw/upper /rw/work
$bb mount -t overlay -o lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work overlay /new || die "no overlay"

# /run and /tmp are the guest's own: sockets, locks and journals of the host mean nothing here. But the
# checkout, the environment or the cache may lie below them, so keep a way to what they hide.
for top in run tmp; do
    if [ $root = hostroot ]; then
        $bb mkdir -p /host/$top
        $bb mount --bind /new/$top /host/$top
    fi
    $bb mount -t tmpfs -o mode=1777 tmpfs /new/$top
done
if [ $root != hostroot ]; then
    $bb mount -t 9p -o $p9,ro,cache=loose hostroot /host || die "no host root"
fi
$bb chmod 755 /new/run
$bb mkdir -p /new/run/lab
$bb mount -t 9p -o $p9,access=any,cache=none share /new/run/lab || die "no share"
keep() { # PATH of the host, where it is there: under an overlay, so that the guest may write there
    $bb mkdir -p "/new$1" && [ -d "/host$1" ] || die "cannot keep $1"
    if [ $root = hostroot ]; then
        $bb mount --bind "/host$1" "/new$1" || die "cannot keep $1"
        return
    fi
    kept=$((kept + 1))
    $bb mkdir -p /rw/kept/$kept/upper /rw/kept/$kept/work
    $bb mount -t overlay -o "lowerdir=/host$1,upperdir=/rw/kept/$kept/upper,workdir=/rw/kept/$kept/work" overlay \
        "/new$1" || die "cannot keep $1"
}

kept=0
while read -r path; do
    case $root$path in
        hostroot/run/* | hostroot/tmp/*) keep "$path" ;;
        hostroot*) ;;
        *) [ -d "/new$path" ] || keep "$path" ;;
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
[ -d "/new$modules" ] || keep "$modules"
$bb mount --bind "/new$modules" /new/usr/lib/modules || die "no modules"

# On a tmpfs, because they are needed to the very end; and busybox knows itself only by this name.
$bb cp /bin/busybox /new/run/busybox
$bb cp /new/run/lab/stage2.sh /new/run/stage2.sh

for top in proc sys dev; do
    $bb mount --move /$top /new/$top
done
exec $bb switch_root /new /run/busybox sh /run/stage2.sh
