"""The demo's half inside the VM: runs the steps, shows them, and holds each to what it claims.

What the guest does and what the host says stand side by side: each line begins with who it is.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab import demo_ways
from lab.commands import Commands
from lab.demo_show import MIB, WAIT_SECONDS, Host, Running, Show, poll
from lab.demo_ways import Way

SYS = Path("/sys/bus")


class Story:
    """One way in, from a kernel's devices and back to them.

    ``at`` are the addresses of the devices by the names that the way has for them.
    """

    def __init__(self, show: Show, host: Host, commands: Commands, way: Way) -> None:
        self.show = show
        self.host = host
        self.way = way
        self._commands = commands
        self.at: dict[str, str] = {}

    def tell(self) -> None:
        """All of it."""
        if self.way.driver == "vhost_vdpa":
            from tests.vm import vduse  # the standard library's alone

            with tempfile.TemporaryDirectory() as folder, vduse.disk("vduse0", Path(folder)) as disk:
                self.show.say(
                    "guest", "a disk of 1 MiB of random bytes is served by qemu-storage-daemon, over VDUSE"
                )
                vduse.hand_over(disk.name, "virtio_vdpa")  # as a kernel has it that knows of no other driver
                self.at = {"disk": disk.address}
                self._between(lambda: self.blocks(disk.path))
            return
        if self.way.modules:
            subprocess.run(["modprobe", "-a", *self.way.modules], check=True, timeout=WAIT_SECONDS)
        self.at = self._addresses()
        self._between(self.drivers)

    def _addresses(self) -> dict[str, str]:
        if self.way.driver is not None:
            addresses = self.host.ask("addresses")
            return {name: where for name, where in addresses.items() if not name.startswith("lab-")}
        # No bus that QEMU would tell of: what the list says, by type.
        listed = json.loads(self._commands.run("list", "--json", timeout=WAIT_SECONDS).stdout)["devices"]
        names = {"input": "keyboard"}
        windows = (one for one in listed if one["interface"] == "mmio" and one["driver"])  # others are empty
        return {names.get(one["type"], one["type"]): one["address"] for one in windows}

    def go(self, verb: str, name: str, words: str = "", **how: Any) -> str:
        """Run ``uvirtio VERB`` on a device that is ours."""
        options = self.way.options.get(name, self.way.options.get("", ""))
        line = " ".join(part for part in (f"uvirtio {verb} {self.at[name]}", words, options) if part)
        return self.show.run(line, **how)

    def _between(self, middle: Callable[[], None]) -> None:
        """``middle`` between taking the devices and giving them back."""
        show, ours = self.show, list(self.at.values())
        before_driver = {address: driver_of(address) for address in ours}

        show.title("The kernel's own drivers have the devices: may we take one?")
        before = show.run("uvirtio list")
        listed = all(address in before and before_driver[address] for address in ours)
        whose = " and ".join(sorted(set(before_driver.values())))
        show.claim(f"{', '.join(self.at)}: listed, and {whose} has them", listed)
        show.run(f"uvirtio plan {ours[0]} {self.way.binding}".rstrip())

        show.title("Take them, and bring one up step by step")
        show.run(f"uvirtio bind {' '.join(ours)} {self.way.binding}".rstrip())
        taken = all(driver_of(address) == (self.way.driver or "") for address in ours)
        show.claim(f"{self.way.driver or 'no driver of the kernel'} has them", taken)
        diagnosis = self.go("diag", list(self.at)[-1])
        show.claim("it works, and each step says so", f"verdict: {self.way.verdict}" in diagnosis)

        middle()

        show.title("Give everything back")
        show.run("uvirtio restore --all")
        after = show.run("uvirtio list")
        show.claim(f"{whose} has them all", {address: driver_of(address) for address in ours} == before_driver)
        show.claim("the list reads as it did at first", listed and after == before)

    def drivers(self) -> None:
        """What each of our devices can do."""
        if "balloon" in self.at:
            total = self.host.ask("query_balloon")
            self.inflate(total)
            self.follow_balloon(total)
        if "mem" in self.at:
            self.plug()
        if "rng" in self.at:
            self.random()
        if "keyboard" in self.at:
            self.keys()

    def reached(self, question: str, wanted: int, text: str) -> None:
        """Claim that the host's books come to say ``wanted`` bytes."""
        seen = self.host.ask(question)
        deadline = time.monotonic() + WAIT_SECONDS / 2
        while seen != wanted and time.monotonic() < deadline:
            time.sleep(0.05)
            seen = self.host.ask(question)
        self.show.claim(text.format(seen // MIB), seen == wanted)

    def inflate(self, total: int) -> None:
        """A balloon as large as the command says."""
        self.show.title("Balloon: inflate by 64 MiB, and give it back on Ctrl-C")

        def watch(running: Running) -> None:
            running.wait_for("holding")
            self.reached("query_balloon", total - 64 * MIB, "host: QMP query-balloon says {} MiB")
            running.interrupt()

        self.go("balloon inflate", "balloon", "64M", code=130, during=watch)
        self.reached("query_balloon", total, "host: after Ctrl-C it says {} MiB again")

    def follow_balloon(self, total: int) -> None:
        """A balloon as large as the host says."""
        show, host = self.show, self.host
        show.title("Balloon: follow the host, and tell it how the guest's memory is")

        def lead(running: Running) -> None:
            running.wait_for("following")
            host.ask("poll_statistics", 1)
            for less in (96, 16):
                target = total - less * MIB
                show.host(f"QMP balloon {target // MIB} MiB")
                host.ask("balloon", target)
                self.reached("query_balloon", target, "host: QMP query-balloon says {} MiB")
            poll(lambda: bool(host.ask("statistics")), "statistics")
            values = host.ask("statistics")
            shown = ", ".join(f"{name.removeprefix('stat-')} {value // MIB} MiB" for name, value in values.items())
            show.host(f"QMP guest-stats: {shown}")
            show.claim("the guest's MEMTOT is MemTotal", values["stat-total-memory"] == mem_total())
            host.ask("balloon", total)
            running.interrupt()

        self.go("balloon follow", "balloon", code=130, during=lead)
        host.ask("poll_statistics", 0)

    def plug(self) -> None:
        """virtio-mem: blocks come and go as the host requests."""
        show, host = self.show, self.host
        show.title("Memory: follow the host's requested-size up and down")

        def lead(running: Running) -> None:
            running.wait_for("following")
            for size in (128, 48):
                show.host(f"QMP qom-set requested-size {size} MiB")
                host.ask("request_memory", size * MIB)
                self.reached("query_memory", size * MIB, "host: QMP query-memory-devices says {} MiB")
            running.interrupt()

        self.go("mem follow", "mem", code=130, during=lead)

        show.title("Memory: it stays plugged when the process ends; see it, and unplug it")
        picture = self.go("mem map", "mem")
        show.claim("24 blocks of 2 MiB are plugged", picture.count("#") == 24 + 1)  # and one in the legend
        host.ask("request_memory", 0)
        self.go("mem unplug-all", "mem")
        self.reached("query_memory", 0, "host: QMP query-memory-devices says {} MiB")

    def random(self) -> None:
        """Bytes of an entropy source."""
        self.show.title("Random bytes")
        dumps = [self.go("rng read", "rng", "64") for _ in range(2)]
        bytes_of = [re.findall(r"(?:^|\s)([0-9a-f]{2})(?=\s)", dump) for dump in dumps]
        self.show.claim("64 bytes came, twice", [len(one) for one in bytes_of] == [64, 64])
        self.show.claim("no two dumps are alike", dumps[0] != dumps[1])

    def keys(self) -> None:
        """The keyboard: keys come in, LEDs go out."""
        show, host = self.show, self.host
        show.title("Keyboard: the host presses keys, and they arrive here")

        def press(running: Running) -> None:
            running.wait_for("waiting")
            show.host("QMP input-send-event u, v, ret: down and up")
            host.ask("press", ["u", "v", "ret"])

        events = self.go("input events", "keyboard", "--count 12", during=press)
        both = all(len(re.findall(rf"\({key}\)", events)) == 2 for key in ("KEY_U", "KEY_V", "KEY_ENTER"))
        show.claim("each key went down and up", both)

        if not self.way.screen:
            show.title("Keyboard: LEDs go the other way")
            self.go("input led", "keyboard", "capslock on")
            return
        show.title("Keyboard: LEDs go the other way, and a VNC client of the host sees them")
        for led, state in (("capslock", "on"), ("numlock", "on"), ("capslock", "off"), ("numlock", "off")):
            self.go("input led", "keyboard", f"{led} {state}")
            if state == "on":
                show.claim(f"host: VNC says that {led} is lit", host.ask("leds", led, True))
        show.claim("host: VNC says that both are dark", host.ask("leds", "", False))

    def blocks(self, image: Path) -> None:
        """A disk: what is read is what the file has, and what is written gets there."""
        show = self.show
        show.title("Disk: read, write, read again; the file behind it is the witness")
        self.go("blk info", "disk")
        dump = self.go("blk read", "disk", "8s 1s")
        seen = " ".join(line.partition("  ")[2].partition("|")[0] for line in dump.splitlines())
        data = image.read_bytes()[8 * 512 : 9 * 512]
        show.claim("these are the file's bytes at sector 8", data.hex() == "".join(seen.split()))
        self.go("blk write", "disk", "8s --zeroes 4K --allow-write")
        show.claim("the file has zeroes there now", not any(image.read_bytes()[8 * 512 : 16 * 512]))
        show.claim("and nowhere else", any(image.read_bytes()[16 * 512 : 17 * 512]))


def driver_of(address: str) -> str:
    """The kernel's driver that has the device, or ""; asked of sysfs, not of us."""
    bus, _, name = address.partition(":")
    if bus == "vdpa":
        place = SYS / "vdpa/devices" / name
    elif bus == "mmio":
        start = f"{int(name, 16):x}"
        place = SYS / "platform/devices" / f"{start}.virtio_mmio"  # of a device tree; of ACPI, iomem says which
        if not place.exists():
            lines = Path("/proc/iomem").read_text().splitlines()
            found = (
                line.partition(" : ")[2] for line in lines if line.strip().lstrip("0").startswith(f"{start}-")
            )
            place = SYS / "platform/devices" / next(found, "none")
    else:
        place = SYS / "pci/devices" / address
    link = place / "driver"
    return link.resolve().name if link.exists() else ""


def mem_total() -> int:
    """Bytes of memory that this Linux has."""
    [line] = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:")]
    return int(line.split()[1]) * 1024


def epilogue(story: Story) -> None:
    """The kernel's own balloon does what the host asks for, as before."""
    show, host = story.show, story.host
    show.title("The kernel's drivers work again")
    total = host.ask("query_balloon")
    show.host(f"QMP balloon {(total - 32 * MIB) // MIB} MiB")
    host.ask("balloon", total - 32 * MIB)
    story.reached("query_balloon", total - 32 * MIB, "virtio_balloon follows, QMP query-balloon: {} MiB")
    host.ask("balloon", total)


def main() -> int:
    """Run the demo; 0 if every claim held."""
    begin = time.monotonic()
    commands = Commands.fork()
    show = Show(commands)
    ways = demo_ways.story(*json.loads(os.environ["UVIRTIO_DEMO"]))
    host = Host()
    try:
        for way in ways:
            if len(ways) > 1:
                print(f"\n=== {way.title} ===", flush=True)
            story = Story(show, host, commands, way)
            story.tell()
            if "balloon" in story.at:
                epilogue(story)
    except (TimeoutError, RuntimeError, OSError, AssertionError) as error:
        show.claim(f"the demo goes on: {error}", False)
    commands.close()
    took = time.monotonic() - begin
    verdict = "PASS" if not show.broken else "FAIL"
    show.title(f"{verdict}: {show.held} claims held, {len(show.broken)} broken, {took:.0f} s in the VM")
    for text in show.broken:
        print(f"   broken: {text}")
    return 0 if not show.broken else 1


if __name__ == "__main__":
    sys.exit(main())
