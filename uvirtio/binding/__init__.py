"""Virtio devices of this machine and their drivers: discovery, rules of use, plan, bind and restore."""
