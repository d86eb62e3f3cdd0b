"""A driver of one's own, for a type that uvirtio has none for: the console (5.3). The host echoes what it hears.

    python examples/console_driver.py

Two queues: on receiveq an empty buffer waits for whatever comes; what goes out on transmitq is waited for.
"""

import socket
import tempfile

from uvirtio.device import Device, QueueSpec
from uvirtio.drivers.base import Driver, runs, transact
from uvirtio.qemu import Machine
from uvirtio.virtqueue import Completion


class Console(Driver):
    device_id = 3  # 5.3.1

    def __init__(self, device: Device) -> None:
        super().__init__(device)  # reset, negotiate, make the queues, DRIVER_OK
        self._receive, self._transmit = device.queues[0], device.queues[1]
        self._post()

    def _queues(self) -> list[QueueSpec]:
        return [QueueSpec(0, "receiveq", size=4), QueueSpec(1, "transmitq", size=4)]  # 5.3.2, port 0

    def _before_ok(self) -> None:
        self._in, self._out = self.device.dma.alloc(4096), self.device.dma.alloc(4096)

    def _post(self) -> None:
        self._receive.add((), runs(self._in, 0, 4096), "in")  # nothing to read for the device, 4096 to write
        self._receive.kick()

    def write(self, data: bytes) -> None:
        with self.device.session():
            self._out.view[: len(data)] = data
            transact(self.device, self._transmit, runs(self._out, 0, len(data)), (), timeout=5, what="transmitq")

    def read(self, timeout: float) -> bytes:
        with self.device.session():
            done: list[Completion] = []

            def ready() -> bool:
                done.extend(self._receive.reap())
                return bool(done)

            if not self.device.wait(ready, timeout=timeout, what="text", owed=False):
                return b""  # not owed: a device need not send anything
            data = bytes(self._in.view[: done[0].written])
            self._post()
            return data


with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as host:
    far = f"socket,id=far,path={folder}/far,server=on,wait=off"
    arguments = ["-chardev", far, "-device", "virtconsole,chardev=far"]
    with Machine(devices=["virtio-serial-pci"], arguments=arguments) as machine:
        host.connect(f"{folder}/far")
        with machine.open(0) as device, Console(device) as console:
            console.write(b"hello, host\n")
            host.sendall(host.recv(100).upper())
            print(console.read(timeout=5))
