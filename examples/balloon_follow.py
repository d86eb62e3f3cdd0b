"""Track the host's target: the host asks for memory and gives it back, the balloon follows.

    python examples/balloon_follow.py

``follow`` returns when nothing has changed for ``timeout`` seconds, and calls ``progress`` after each chunk of
pages. Here the host changes its mind from there: with the callback the program needs no second thread.
"""

import uvirtio
from uvirtio.qemu import Machine

MIB = 1 << 20


def main() -> None:
    targets = [448, 480, 512]  # MiB that the host leaves to the guest, one after the other

    with Machine(devices=["virtio-balloon-pci"], ram=512 * MIB) as machine:

        def next_target() -> None:
            if targets:
                print(f"host: leaves {targets[0]} MiB to the guest")
                machine.qmp("balloon", value=targets.pop(0) * MIB)

        with machine.open(0) as device, uvirtio.Balloon(device) as balloon:

            def progress(held: int) -> None:
                if held == balloon.num_pages:
                    print(f"guest: reached, {held * 4096 // MIB} MiB in the balloon")
                    next_target()

            next_target()
            balloon.follow(timeout=0.5, progress=progress)
            print(f"host: sees {machine.qmp('query-balloon')['actual'] // MIB} MiB")


if __name__ == "__main__":
    main()
