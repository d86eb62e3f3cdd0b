"""The standard as data: numbers, names and layouts, each with its section number in virtio 1.4.

Nothing here touches a device and nothing here knows a transport; ``tests/unit/spec/test_spec.py`` compares the
numbers with the kernel's own headers.
"""
