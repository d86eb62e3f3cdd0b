"""The traditional memory balloon (5.5): pages that the host may take, and give back."""

from uvirtio.drivers.balloon.driver import Balloon

__all__ = ["Balloon"]
