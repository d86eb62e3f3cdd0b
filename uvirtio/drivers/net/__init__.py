"""The network device (5.1): Ethernet frames, in and out.

``Net`` sends and receives them, several at a time; a ``Frame`` is one with its header, which says what one side
left to the other to complete. ``take`` and ``send`` are the fast way, for frames that are bytes.
"""

from uvirtio.drivers.net.config import NetConfig
from uvirtio.drivers.net.driver import Net, NetCounts
from uvirtio.drivers.net.frame import Frame, Header, mac_of, mac_text
from uvirtio.spec.net import Gso, HeaderFlag, RxMode

__all__ = [
    "Frame",
    "Gso",
    "Header",
    "HeaderFlag",
    "Net",
    "NetConfig",
    "NetCounts",
    "RxMode",
    "mac_of",
    "mac_text",
]
