"""uvirtio: drive virtio devices from user space.

The public names arrive as their layers do; ``import uvirtio`` opens nothing.
"""

from uvirtio.errors import UvirtioError

__version__ = "0.1.0"

__all__ = ["UvirtioError", "__version__"]
