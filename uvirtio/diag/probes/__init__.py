"""Data paths: for each device type the least exchange that shows that the device does its work.

``table.PROBES`` has them. A type with a driver is probed through it; the others ask by ``talk``.
"""
