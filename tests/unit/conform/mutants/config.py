"""2.5 and 3.2.1: devices whose configuration is wrong."""

from __future__ import annotations

from . import Mutants, around

MUTANTS = Mutants("scripted:mem")


@MUTANTS.of("D-CFG-01")
def ones_before_features_ok(device):
    around(
        device.model,
        "read_config",
        lambda before, at, width: before(at, width) if device.status_now & 8 else (1 << 8 * width) - 1,
    )


@MUTANTS.of("D-CFG-02", on="scripted:blk")
def seg_max_only_with_its_feature(device):
    around(
        device.model,
        "read_config",
        lambda before, at, width: 0 if at == 12 and not device.driver_features & 4 else before(at, width),
    )


@MUTANTS.of("D-CFG-03")
def generation_counts_readings(device):
    device.faults.generation_bumps = -1


@MUTANTS.of("D-CFG-05", on="scripted:blk")
def capacity_is_written(device):
    def write(before, offset, width, value):
        device.model.config[offset : offset + width] = value.to_bytes(width, "little")

    around(device.model, "write_config", write)


@MUTANTS.of("D-CHG-01", on="scripted:balloon")
def changes_in_silence(device):
    around(device, "interrupt_config", lambda before: None)
