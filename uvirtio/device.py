"""Opening a device, the initialisation sequence, the wait loop and the leaving order."""
