# The command of a lab VM that tools/vm serve has: run what comes in the share as call-0, call-1 ..., one after the
# other, each in a session of its own, and leave what came of it there.
lab=/run/lab
bb=/run/busybox
number=0
: >$lab/serving
while :; do
    until [ -e $lab/call-$number ]; do
        $bb sleep 0.1
    done
    $bb setsid /bin/sh $lab/call-$number </dev/null >$lab/stdout-$number 2>$lab/stderr-$number
    echo $? >$lab/status.new
    $bb mv $lab/status.new $lab/status-$number
    number=$((number + 1))
done
