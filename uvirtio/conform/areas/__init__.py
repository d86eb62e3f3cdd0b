"""The rows, by part of the standard; each module has an ``AREA``."""
