"""The way to a PCI function through vfio-pci: with an IOMMU, or in VFIO's no-IOMMU mode."""

from __future__ import annotations

from typing import Literal

from uvirtio.backends.vfio import ways
from uvirtio.backends.vfio.group import require_vf_token_taker
from uvirtio.backends.vfio_function import VfioFunction
from uvirtio.errors import UnsafeDma
from uvirtio.host.drivers import VFIO, require_bound
from uvirtio.host.roots import Roots
from uvirtio.host.syscalls import Kernel
from uvirtio.interfaces.values import DEFAULT_TIMEOUT


class VfioPciFunction(VfioFunction):
    """A PCI function that vfio-pci holds behind an IOMMU. Satisfies ``PciFunction``."""

    @classmethod
    def open(
        cls,
        address: str,
        roots: Roots | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        kernel: Kernel | None = None,
        way: Literal["best", "group", "cdev"] = "best",
        unsafe_dma: bool = False,
        vf_token: str | None = None,
    ) -> VfioFunction:
        """Open the function at ``address`` (``0000:03:00.0``). **The kernel resets it on the way.**

        The caller has asked the deny list. ``timeout`` (seconds) bounds later waits for the device's lock.
        ``way`` insists on one; the best is what the kernel has and this user may open. A function without an
        IOMMU comes back as a VfioNoIommuFunction, with the consent. ``vf_token`` is the UUID of a function with
        SR-IOV (``Group.device_fd``). Raises NoIommu, UnsafeDma, NotSupported, GroupNotViable, Busy,
        PermissionLack, ModuleLack.
        """
        roots = roots or Roots()
        kernel = kernel or Kernel()
        require_bound(address, VFIO, roots)
        if vf_token is not None:
            require_vf_token_taker(address, roots)
        kind: type[VfioFunction] = cls
        if ways.is_noiommu(address, roots):
            from uvirtio.backends.guardian import WARNING
            from uvirtio.backends.vfio_noiommu import VfioNoIommuFunction

            if not unsafe_dma:
                raise UnsafeDma(
                    f"{address} is refused: {WARNING}",
                    seen="a group called vfio-noiommu, without --unsafe-dma",
                    expected="the consent, or a device that an IOMMU holds",
                    remedy="on a machine that you can afford to lose: --unsafe-dma (unsafe_dma=True); better: "
                    "give it an IOMMU",
                )
            kind, take = VfioNoIommuFunction, ways.without_iommu
        else:
            take = {"best": ways.best, "group": ways.by_group, "cdev": ways.by_cdev}[way]
        opened = take(address, roots, kernel, vf_token)
        try:
            return kind(address, opened, roots, timeout=timeout)
        except BaseException:
            opened.close()
            raise
