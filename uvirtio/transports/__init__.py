"""The transports: virtio over PCI, MMIO and vDPA, on top of what a back end provides."""
