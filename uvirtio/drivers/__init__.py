"""Drivers for the device types: balloon, blk, input, mem, net, rng and scsi, and for the administration queue."""
