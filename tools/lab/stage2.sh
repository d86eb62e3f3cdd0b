# Second half of the lab VM's start, as process 1, in the host's root: make it a usable machine, run the job,
# leave its exit code in the share, power off.
bb=/run/busybox
lab=/run/lab
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

$bb mkdir -p /dev/pts /dev/shm /dev/hugepages
$bb mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
$bb mount -t tmpfs -o mode=1777 tmpfs /dev/shm
$bb mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
$bb hostname uvirtio-lab
$bb ip link set lo up
$bb mkdir -m 1777 /run/lock /run/home

# The host's deny list speaks of the host's devices, and says "*" on a machine that lives on virtio itself. So do
# driverctl's choices of drivers, and the administrator's options and bans of modules. The devices of this VM are
# made for us; only this overlay's copies go.
$bb rm -rf /etc/uvirtio/deny /etc/driverctl.d /etc/modprobe.d

# Nobody runs udev here: load what the virtio devices ask for, as it would. evdev has no such alias.
modprobe -qab evdev $($bb cat /sys/bus/virtio/devices/*/modalias 2>/dev/null) 2>/dev/null

# The QMP line. Raw before anything is said on it: an echo would be taken for commands.
if [ -e $lab/witness ]; then
    read -r line <$lab/witness
    $bb stty -F "$line" raw -echo
    $bb chmod 666 "$line"
fi
[ -e $lab/before ] && . $lab/before

if [ -e $lab/interactive ]; then
    read -r line <$lab/interactive
    $bb setsid $bb sh -c 'exec /bin/sh /run/lab/job <>"$0" >&0 2>&1' "$line"
else
    $bb setsid /bin/sh $lab/job </dev/null >$lab/stdout 2>$lab/stderr
fi
status=$?

$bb dmesg >$lab/dmesg
echo $status >$lab/status.new
$bb mv $lab/status.new $lab/status
$bb poweroff -f
