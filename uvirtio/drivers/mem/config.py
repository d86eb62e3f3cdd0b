"""The configuration of a memory device (5.15.4), read as one snapshot and checked."""

from __future__ import annotations

from dataclasses import dataclass

from uvirtio.device import Device
from uvirtio.errors import ConfigError
from uvirtio.spec import features as f
from uvirtio.spec import mem as spec
from uvirtio.spec.layout import by_name

_FIELDS = by_name(spec.CONFIG)
_READ = tuple(
    _FIELDS[name]
    for name in ("block_size", "addr", "region_size", "usable_region_size", "plugged_size", "requested_size")
)
_ADDRESS_END = 1 << 64


@dataclass(frozen=True, slots=True)
class MemConfig:
    """One snapshot of the configuration; all sizes and addresses in bytes."""

    block_size: int
    """Bytes of a block, the smallest unit that can be plugged or unplugged; a power of two."""
    addr: int
    """Guest-physical address of the region."""
    region_size: int
    usable_region_size: int
    """The part of the region, from its start, for which the device accepts requests now."""
    plugged_size: int
    requested_size: int
    """The ``plugged_size`` that the host requests."""
    node_id: int | None = None
    """Proximity domain; None without ACPI_PXM (5.15.4.1)."""

    @property
    def blocks(self) -> int:
        """Blocks in the region."""
        return self.region_size // self.block_size

    @property
    def usable_blocks(self) -> int:
        """Whole blocks in the usable part of the region."""
        return self.usable_region_size // self.block_size

    @property
    def plugged_blocks(self) -> int:
        """Blocks that are plugged, by ``plugged_size``."""
        return self.plugged_size // self.block_size

    def block_at(self, address: int) -> int:
        """Return the number of the block that contains a guest-physical address."""
        return (address - self.addr) // self.block_size

    def address_of(self, block: int) -> int:
        """Return the guest-physical address of a block."""
        return self.addr + block * self.block_size


def read(device: Device) -> MemConfig:
    """Read and check the configuration.

    Args:
        device: A memory device whose features are negotiated.

    Raises:
        ConfigError: It contradicts 5.15.4.2; the message has everything that is wrong.
        ConfigUnstable: It changes at every read.
    """
    # Never the padding, and node_id only with ACPI_PXM.
    fields = (*_READ, _FIELDS["node_id"]) if device.has(f.Mem.ACPI_PXM) else _READ
    values = device.read_config(*fields)
    config = MemConfig(*values)
    wrong = broken_invariants(config)
    if wrong:
        raise ConfigError(
            f"the configuration of {device.address} is invalid: {'; '.join(wrong)}",
            seen=", ".join(f"{field.name} {value:#x}" for field, value in zip(fields, values, strict=True)),
            expected="values that 5.15.4.2 allows",
            remedy="no request was sent. virtio-mem needs a PCI device: over virtio-mmio QEMU gives it no memory"
            if config.addr == 0
            else "the device is at fault; its log may say more",
        )
    return config


def broken_invariants(config: MemConfig) -> list[str]:
    """Return everything in a configuration that contradicts 5.15.4, in words; empty if it is valid."""
    block, wrong = config.block_size, []
    if block <= 0 or block & (block - 1):
        return [f"block_size {block} is no power of two"]  # the rest is measured in it
    if config.addr == 0:
        wrong.append("addr is 0, so the device has no memory")
    if config.region_size == 0:
        wrong.append("region_size is 0")
    for name in ("addr", "region_size", "plugged_size", "requested_size"):
        if getattr(config, name) % block:
            wrong.append(f"{name} {getattr(config, name):#x} is no multiple of block_size {block:#x}")
    if block > config.region_size > 0:
        wrong.append("block_size exceeds region_size")
    if config.addr + config.region_size > _ADDRESS_END:
        wrong.append("the region reaches beyond 64 bits of address")
    if config.usable_region_size > config.region_size:
        wrong.append("usable_region_size exceeds region_size")
    if config.requested_size > config.usable_region_size:
        wrong.append("requested_size exceeds usable_region_size")
    if config.plugged_size > config.region_size:
        wrong.append("plugged_size exceeds region_size")
    return wrong
