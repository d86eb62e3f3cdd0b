"""Drivers for the device types: balloon, blk, input, mem and rng, and for the administration queue."""
