"""The ways in that the demo can show: what to boot for each, and the words that its commands take."""

from __future__ import annotations

from dataclasses import dataclass, field

from lab.arches import AARCH64


@dataclass(frozen=True)
class Way:
    """One transport behind one back end.

    ``devices`` are QEMU's, with the ids that the story knows them by (balloon, mem, keyboard, rng). ``options``
    stand behind every command that opens a device, ``binding`` behind bind. ``driver`` is who has a device once it
    is bound; None: no driver.
    """

    title: str
    devices: tuple[str, ...]
    driver: str | None
    options: dict[str, str] = field(default_factory=dict)
    """By device; "" for all others."""
    binding: str = ""
    verdict: str = "pass"
    """Of a diagnosis: where no IOMMU is, it warns of that."""
    kernel: str = "6.1"
    machine: str = ""
    iommu: str = ""
    """The architecture's usual ones."""
    memory: str = "1G"
    append: str = ""
    arguments: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    """What the kernel drives the devices with, where nothing loads it by itself."""
    screen: bool = True
    """The machine can have one, which a VNC client needs to be told of LEDs."""


WAYS: dict[tuple[str, str], Way] = {
    # The balloon is not behind the IOMMU, because Linux's own driver refuses one that is, and shall have it back.
    ("pci", "vfio"): Way(
        title="a balloon, a memory device and a keyboard, through vfio-pci",
        devices=(
            "virtio-balloon-pci,id=balloon",
            "virtio-mem-pci,id=mem,block-size=2M,iommu_platform=on",
            "virtio-keyboard-pci,id=keyboard,iommu_platform=on,vectors=3",
        ),
        driver="vfio-pci",
        memory="1G,maxmem=4G,slots=4",
    ),
    # A memory device and a keyboard have no legacy interface. Legacy queues want memory in one piece: huge pages.
    ("pci-legacy", "vfio"): Way(
        title="a balloon and an entropy source by the interface from before virtio 1.0, through vfio-pci",
        devices=(
            "virtio-balloon-pci,id=balloon,bus=pcie.0",
            "virtio-rng-pci,id=rng,disable-legacy=off,disable-modern=on",
        ),
        driver="vfio-pci",
        options={"balloon": "--force-legacy"},
        append="hugepages=32",
    ),
    # No IOMMU: physical addresses, which hold still in huge pages alone. The balloon takes its pages there too.
    ("pci", "uio"): Way(
        title="a balloon, a memory device and a keyboard, through uio_pci_generic, without an IOMMU",
        devices=(
            "virtio-balloon-pci,id=balloon",
            "virtio-mem-pci,id=mem,block-size=2M",
            "virtio-keyboard-pci,id=keyboard",
        ),
        driver="uio_pci_generic",
        options={"": "--unsafe-dma"},
        verdict="warn",
        binding="--driver uio_pci_generic",
        iommu="none",
        memory="1G,maxmem=4G,slots=4",
        append="hugepages=64",
    ),
    # The windows share a page, and so change hands together; they are polled.
    ("mmio", "devmem"): Way(
        title="a balloon, a keyboard and an entropy source in virtio-mmio windows, through /dev/mem",
        devices=(
            "virtio-balloon-device,id=balloon",
            "virtio-keyboard-device,id=keyboard",
            "virtio-rng-device,id=rng",
        ),
        driver=None,
        options={"": "--unsafe-dma"},
        verdict="warn",
        binding="--group",
        machine="microvm,pcie=on,acpi=on",
        iommu="none",
        append="hugepages=64",
        arguments=("-global", "virtio-mmio.force-legacy=false"),
        modules=("virtio_mmio", "virtio_balloon", "virtio_input", "virtio_rng"),
        screen=False,
    ),
    ("vdpa", "vhost-vdpa"): Way(
        title="a disk of VDUSE, served by QEMU's storage daemon in the guest, through vhost-vdpa",
        devices=(),
        driver="vhost_vdpa",
        kernel="6.12",
        iommu="none",
    ),
}

ON_ARM: tuple[Way, ...] = (
    # QEMU takes one balloon a machine.
    Way(
        title="a balloon and a keyboard in virtio-mmio windows of a device tree, through /dev/mem",
        devices=("virtio-balloon-device,id=balloon", "virtio-keyboard-device,id=keyboard"),
        driver=None,
        options={"": "--unsafe-dma"},
        verdict="warn",
        binding="--group",
        kernel="6.12",
        memory="1G,maxmem=4G",
        append="hugepagesz=2M hugepages=64",
        arguments=("-global", "virtio-mmio.force-legacy=false"),
        modules=("virtio_mmio", "virtio_balloon", "virtio_input"),
        screen=False,
    ),
    Way(
        title="a memory device and an entropy source behind an SMMU, through vfio-pci",
        devices=(
            "virtio-mem-pci,id=mem,block-size=2M,iommu_platform=on",
            "virtio-rng-pci,id=rng,iommu_platform=on",
        ),
        driver="vfio-pci",
    ),
)
"""One machine with both ways, told one after the other: the first one says what else to boot."""

BACKENDS = {"pci": "vfio", "pci-legacy": "vfio", "mmio": "devmem", "vdpa": "vhost-vdpa"}
"""The back end of each transport where none is named."""


def story(arch: str, transport: str, backend: str) -> tuple[Way, ...]:
    """What is told on one machine."""
    return ON_ARM if arch == AARCH64.name else (WAYS[transport, backend],)
