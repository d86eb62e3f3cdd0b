"""The names that udev's hardware database has for a device. Optional: without udev or pyudev there are none."""

from __future__ import annotations

from uvirtio.binding.discover import DiscoveredDevice
from uvirtio.host import sysfs
from uvirtio.host.roots import Roots


def udev_properties(found: DiscoveredDevice, roots: Roots) -> dict[str, str]:
    """The device's properties in udev's database; empty without udev or pyudev, or below another root."""
    if not roots.live or not sysfs.is_dir(roots.run / "udev/data"):
        return {}  # pyudev's Context takes no other root, and importing it costs 0.1 s
    try:
        import pyudev

        device = pyudev.Devices.from_path(pyudev.Context(), str(found.path))
        return {str(key): str(value) for key, value in device.properties.items()}
    except Exception:  # noqa: BLE001  # names are optional: no failure here may stop discovery
        return {}


def hardware(found: DiscoveredDevice, roots: Roots) -> dict[str, str | None] | None:
    """The names that udev's hardware database has for the device's ids.

    Returns:
        ``vendor`` and ``model``; None: no udev, another root, or a bus without such ids.
    """
    properties = udev_properties(found, roots)
    vendor, model = properties.get("ID_VENDOR_FROM_DATABASE"), properties.get("ID_MODEL_FROM_DATABASE")
    return None if vendor is None and model is None else {"vendor": vendor, "model": model}
