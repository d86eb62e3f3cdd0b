"""The back ends: how this process gets at a device, through the kernel or QEMU. None of them knows virtio."""
