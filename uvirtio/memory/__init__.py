"""Memory that a device shares with this process: exact-width access, fences, eventfds, device addresses."""
