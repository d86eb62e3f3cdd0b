"""One QEMU, several devices, and QMP beside them: what the device model itself says about its queues.

    python examples/machine_qmp.py

``Machine`` takes QEMU's own ``-device`` arguments; ``functions`` has one entry for each, in their order. Several
drivers share the machine. ``qmp_events`` waits for an event of the host.
"""

import uvirtio
from uvirtio.qemu import Machine


def main() -> None:
    with Machine("q35", ["virtio-rng-pci,id=entropy", "virtio-balloon-pci,id=balloon"]) as machine:
        print(f"QEMU {'.'.join(map(str, machine.version))}, process {machine.pid}")
        with (
            machine.open(0) as first,
            machine.open(1) as second,
            uvirtio.Rng(first) as rng,
            uvirtio.Balloon(second) as driver,
        ):
            rng.read(1000)
            driver.inflate(256)
            for function in machine.functions:
                path = f"/machine/peripheral/{function.id}/virtio-backend"
                queue = machine.qmp("x-query-virtio-queue-status", path=path, queue=0)
                print(f"{function.id}: {queue['name']}, queue 0 of {queue['vring-num']}, used {queue['used-idx']}")
            machine.qmp("stop")
            machine.qmp("cont")
            print("events:", *(event["event"] for event in machine.qmp_events("RESUME", timeout=5)))


if __name__ == "__main__":
    main()
