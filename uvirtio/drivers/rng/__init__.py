"""The entropy device (5.4): random bytes from the host, health-tested before they are returned."""

from uvirtio.drivers.rng.driver import Rng
from uvirtio.drivers.rng.health import Health

__all__ = ["Health", "Rng"]
