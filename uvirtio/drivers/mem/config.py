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
    """The unit of everything: what is plugged and unplugged at once, at the least."""
    addr: int
    """Guest-physical address of the region."""
    region_size: int
    usable_region_size: int
    """How far into the region the device takes requests now."""
    plugged_size: int
    requested_size: int
    """What the host wants ``plugged_size`` to be."""
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
        return self.plugged_size // self.block_size

    def block_at(self, address: int) -> int:
        """The number of the block that begins at a guest-physical address, or that it lies in."""
        return (address - self.addr) // self.block_size

    def address_of(self, block: int) -> int:
        """The guest-physical address of a block."""
        return self.addr + block * self.block_size


def read(device: Device) -> MemConfig:
    """The configuration as it is now. Raises ConfigError with everything that is wrong with it (5.15.4.2)."""
    # Never the padding, and node_id only where it means something.
    fields = (*_READ, _FIELDS["node_id"]) if device.has(f.Mem.ACPI_PXM) else _READ
    values = device.read_config(*fields)
    config = MemConfig(*values)
    wrong = broken_invariants(config)
    if wrong:
        raise ConfigError(
            f"the configuration of {device.address} cannot be: {'; '.join(wrong)}",
            seen=", ".join(f"{field.name} {value:#x}" for field, value in zip(fields, values, strict=True)),
            expected="what 5.15.4.2 promises",
            remedy="no request was sent. virtio-mem needs a PCI device: over virtio-mmio QEMU gives it no memory"
            if config.addr == 0
            else "the device is at fault; its log may say more",
        )
    return config


def broken_invariants(config: MemConfig) -> list[str]:
    """Everything in these values that contradicts 5.15.4, in words; empty if all is well."""
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
