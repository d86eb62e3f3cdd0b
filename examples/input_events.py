"""Press keys on the host by QMP, and see them arrive at the device as whole frames; then turn an LED on.

    python examples/input_events.py [TEXT]      default: uvirtio

A frame is what happened at one moment: the events up to SYN_REPORT. Names of keys are the kernel's.
"""

import sys

import uvirtio
from uvirtio.qemu import Machine
from uvirtio.spec import input as spec


def main(text: str) -> int:
    with (
        Machine(devices=["virtio-keyboard-pci"]) as machine,
        machine.open(0) as device,
        uvirtio.Input(device) as keyboard,
    ):
        print(keyboard.describe().name)
        for letter in text.lower():
            for down in (True, False):
                key = {"down": down, "key": {"type": "qcode", "data": letter}}
                machine.qmp("input-send-event", events=[{"type": "key", "data": key}])
        typed = []
        for _ in range(2 * len(text)):
            frame = keyboard.read_frame(timeout=5)
            if frame is None:
                print("no frame within 5 s", file=sys.stderr)
                return 1
            typed += [spec.code_name(e.type, e.code) for e in frame if e.type == spec.EV_KEY and e.value]
        print(" ".join(typed))
        keyboard.set_led(1, True)  # LED_CAPSL; never waits
        print("the device took the LED:", keyboard.flush(timeout=5))
    return 0


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:] or ["uvirtio"])))
