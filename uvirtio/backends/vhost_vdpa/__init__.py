"""vhost-vdpa from Python: the kernel's ioctls on ``/dev/vhost-vdpa-N``, and the memory that such a device uses.

``VhostVdpaNode`` has one method for each ioctl, under the kernel's name; it does not interpret virtio.
"""

from __future__ import annotations

from uvirtio.backends.vhost_vdpa.memory import VdpaBlock, VdpaDmaSpace
from uvirtio.backends.vhost_vdpa.names import node_of, parent_of, require_bound
from uvirtio.backends.vhost_vdpa.node import VhostVdpaNode

__all__ = ["VdpaBlock", "VdpaDmaSpace", "VhostVdpaNode", "node_of", "parent_of", "require_bound"]
