"""The entropy device (5.4): one queue, no features (5.4.3), no configuration (5.4.4)."""

from __future__ import annotations

from uvirtio.spec.layout import Layout
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

TYPE: Final = 4
REQUESTQ: Final = 0  # 5.4.2; its buffers are for the device to write, all of them (5.4.6.1)

CONFIG: Final[Layout] = ()
CONFIG_SIZE: Final = 0
