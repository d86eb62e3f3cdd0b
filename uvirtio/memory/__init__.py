"""Memory that a device shares with us: exact-width access, fences, blocks, and the seams between the layers."""
