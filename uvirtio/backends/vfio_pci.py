"""Opening a PCI function through vfio-pci: with an IOMMU, or in VFIO's no-IOMMU mode."""

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
    """A PCI function that is bound to vfio-pci, behind an IOMMU. Satisfies ``PciFunction``."""

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
        """Open a function. **The kernel resets it.** The caller has checked the deny list.

        Args:
            address: The function, ``0000:03:00.0``.
            roots: Where /dev, /sys and /proc are.
            timeout: Seconds to wait for the device's lock at a later reset.
            kernel: The system calls; replaced in tests.
            way: ``group``, ``cdev`` (iommufd), or the best that the kernel has and this user may open.
            unsafe_dma: Consent to DMA that no IOMMU restricts; required for VFIO's no-IOMMU mode.
            vf_token: The UUID of a function with SR-IOV; as for ``Group.device_fd``.

        Returns:
            The function; a VfioNoIommuFunction where there is no IOMMU.

        Raises:
            NoSuchDevice: There is no such function.
            NotBound: The function is not bound to vfio-pci.
            NoIommu: The function has no IOMMU group.
            UnsafeDma: There is no IOMMU, and ``unsafe_dma`` is False.
            NotSupported: The kernel lacks what ``way`` needs, or the function has no use for ``vf_token``.
            GroupNotViable: A kernel driver is bound to another function of the group.
            Busy: Another process has the function or its group open.
            PermissionLack: This user may not open a node, the IOMMU does not isolate interrupts, or the VF token
                is missing or another one.
            ModuleLack: A module of VFIO or iommufd is not loaded.
            DeviceGone: The function was removed.
            OperationFailed: The kernel refused for another reason.
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
                    expected="--unsafe-dma, or a device behind an IOMMU",
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
