"""Devices of other programs, through vhost-user: qemu-storage-daemon, virtiofsd, DPDK, the daemons of rust-vmm."""

from uvirtio.backends.vhost_user.address import Target, open_target, parse
from uvirtio.backends.vhost_user.look import BackEndFacts, look
from uvirtio.backends.vhost_user.node import VhostUserNode

__all__ = ["BackEndFacts", "Target", "VhostUserNode", "look", "open_target", "parse"]
