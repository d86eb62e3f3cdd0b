"""A device looked at while it runs: samples of its rings, counters and configuration, taken at an interval.

``driven`` opens a device and looks at it from inside; ``seen`` looks at one that another driver has, as far as the
kernel shows it. Both produce a ``Sample`` after the other.
"""
