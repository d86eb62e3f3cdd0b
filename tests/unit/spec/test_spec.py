"""The numbers of uvirtio.spec against the kernel's own headers, and the arithmetic against its definition."""

import re
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.c_program import place_of, printed, size_of
from uvirtio.errors import Misuse
from uvirtio.spec import balloon, blk, features, ids, input_codes, layout, mem, mmio, page, pci, ring, rng, status
from uvirtio.spec import input as inp
from uvirtio.spec.features import Balloon, Blk, Kind, Needs, Net, Reserved, bit, mask
from uvirtio.spec.layout import Field

HEADERS = Path("/usr/include/linux")


@cache
def defines(header):
    """Every ``#define NAME NUMBER`` and ``NAME = NUMBER`` of a header; skips where the header is missing."""
    path = HEADERS / header
    if not path.is_file():
        pytest.skip(f"{path} is missing; on Debian: apt-get install linux-libc-dev")
    text = re.sub(r"/\*.*?\*/", " ", path.read_text(), flags=re.DOTALL)
    found = {}
    number = r"(0[xX][0-9a-fA-F]+|\d+)"
    for name, value in re.findall(rf"^\s*#\s*define\s+(\w+)\s+{number}\s*$", text, re.MULTILINE):
        found[name] = int(value, 0)
    for name, shift in re.findall(r"^\s*#\s*define\s+(\w+)\s+\(1 << (\d+)\)\s*$", text, re.MULTILINE):
        found[name] = 1 << int(shift)
    for name, value in re.findall(rf"^\s*(\w+)\s*=\s*{number}\s*,", text, re.MULTILINE):
        found[name] = int(value, 0)
    return found


# --- numbers ----------------------------------------------------------------------------------------------

# What the standard calls differently, or what came into it after these headers: neither is a mistake of ours.
OTHER_NAMES = {
    "VIRTIO_BALLOON_F_REPORTING": "PAGE_REPORTING",
    "VIRTIO_CONFIG_S_NEEDS_RESET": "DEVICE_NEEDS_RESET",
}


def enum_of(family, prefix, header):
    """(header's name, its number, ours or None) for every define of ``header`` that starts with ``prefix``."""
    ours = {entry.name: entry.value for entry in family}
    found = [
        (name, number, ours.get(OTHER_NAMES.get(name, name.removeprefix(prefix))))
        for name, number in defines(header).items()
        if name.startswith(prefix)
    ]
    assert found, f"no {prefix} in {header}"
    return found


@pytest.mark.parametrize(
    ("family", "prefix", "header"),
    [
        (Reserved, "VIRTIO_RING_F_", "virtio_ring.h"),
        (Net, "VIRTIO_NET_F_", "virtio_net.h"),
        (Blk, "VIRTIO_BLK_F_", "virtio_blk.h"),
        (features.Console, "VIRTIO_CONSOLE_F_", "virtio_console.h"),
        (Balloon, "VIRTIO_BALLOON_F_", "virtio_balloon.h"),
        (features.Scsi, "VIRTIO_SCSI_F_", "virtio_scsi.h"),
        (features.Gpu, "VIRTIO_GPU_F_", "virtio_gpu.h"),
        (features.Vsock, "VIRTIO_VSOCK_F_", "virtio_vsock.h"),
        (features.Iommu, "VIRTIO_IOMMU_F_", "virtio_iommu.h"),
        (features.Mem, "VIRTIO_MEM_F_", "virtio_mem.h"),
        (features.Bt, "VIRTIO_BT_F_", "virtio_bt.h"),
        (features.Gpio, "VIRTIO_GPIO_F_", "virtio_gpio.h"),
        (features.I2c, "VIRTIO_I2C_F_", "virtio_i2c.h"),
        (features.Scmi, "VIRTIO_SCMI_F_", "virtio_scmi.h"),
        (status.Status, "VIRTIO_CONFIG_S_", "virtio_config.h"),
        (blk.Status, "VIRTIO_BLK_S_", "virtio_blk.h"),
        (mem.Request, "VIRTIO_MEM_REQ_", "virtio_mem.h"),
        (mem.Response, "VIRTIO_MEM_RESP_", "virtio_mem.h"),
        (mem.State, "VIRTIO_MEM_STATE_", "virtio_mem.h"),
        (inp.Select, "VIRTIO_INPUT_CFG_", "virtio_input.h"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_enum_agrees_with_its_header(family, prefix, header):
    # A newer header may know more than the standard's edition that we follow, never something else.
    for name, number, ours in enum_of(family, prefix, header):
        assert ours in (number, None), name
    shared = [ours for _, _, ours in enum_of(family, prefix, header) if ours is not None]
    assert len(shared) >= min(len(family), len(enum_of(family, prefix, header))) // 2


def test_reserved_feature_bits_agree_with_the_header():
    known = {name: number for name, number in defines("virtio_config.h").items() if name.startswith("VIRTIO_F_")}
    for name in (
        "VERSION_1",
        "ACCESS_PLATFORM",
        "RING_PACKED",
        "IN_ORDER",
        "ORDER_PLATFORM",
        "SR_IOV",
        "RING_RESET",
    ):
        assert known[f"VIRTIO_F_{name}"] == Reserved[name]
    for name, number in known.items():
        assert getattr(Reserved, name.removeprefix("VIRTIO_F_"), number) == number


HEADER_NAMES = [
    ("virtio_pci.h", "VIRTIO_PCI_CAP_COMMON_CFG", pci.CfgType.COMMON),
    ("virtio_pci.h", "VIRTIO_PCI_CAP_NOTIFY_CFG", pci.CfgType.NOTIFY),
    ("virtio_pci.h", "VIRTIO_PCI_CAP_ISR_CFG", pci.CfgType.ISR),
    ("virtio_pci.h", "VIRTIO_PCI_CAP_DEVICE_CFG", pci.CfgType.DEVICE),
    ("virtio_pci.h", "VIRTIO_PCI_CAP_PCI_CFG", pci.CfgType.PCI_CFG),
    ("virtio_pci.h", "VIRTIO_PCI_CAP_SHARED_MEMORY_CFG", pci.CfgType.SHARED_MEMORY),
    ("virtio_pci.h", "VIRTIO_PCI_CAP_LEN", pci.CAP_LEN),
    ("virtio_pci.h", "VIRTIO_PCI_CAP_CFG_TYPE", pci.CAP_CFG_TYPE),
    ("virtio_pci.h", "VIRTIO_PCI_CAP_BAR", pci.CAP_BAR),
    ("virtio_pci.h", "VIRTIO_PCI_CAP_OFFSET", pci.CAP_OFFSET),
    ("virtio_pci.h", "VIRTIO_PCI_CAP_LENGTH", pci.CAP_LENGTH),
    ("virtio_pci.h", "VIRTIO_PCI_NOTIFY_CAP_MULT", pci.NOTIFY_CAP_MULTIPLIER),
    ("virtio_pci.h", "VIRTIO_PCI_COMMON_DFSELECT", pci.COMMON_DEVICE_FEATURE_SELECT),
    ("virtio_pci.h", "VIRTIO_PCI_COMMON_DF", pci.COMMON_DEVICE_FEATURE),
    ("virtio_pci.h", "VIRTIO_PCI_COMMON_GFSELECT", pci.COMMON_DRIVER_FEATURE_SELECT),
    ("virtio_pci.h", "VIRTIO_PCI_COMMON_GF", pci.COMMON_DRIVER_FEATURE),
    ("virtio_pci.h", "VIRTIO_PCI_COMMON_MSIX", pci.COMMON_CONFIG_MSIX_VECTOR),
    ("virtio_pci.h", "VIRTIO_PCI_COMMON_NUMQ", pci.COMMON_NUM_QUEUES),
    ("virtio_pci.h", "VIRTIO_PCI_COMMON_STATUS", pci.COMMON_DEVICE_STATUS),
    ("virtio_pci.h", "VIRTIO_PCI_COMMON_CFGGENERATION", pci.COMMON_CONFIG_GENERATION),
    ("virtio_pci.h", "VIRTIO_PCI_COMMON_Q_SELECT", pci.COMMON_QUEUE_SELECT),
    ("virtio_pci.h", "VIRTIO_PCI_COMMON_Q_SIZE", pci.COMMON_QUEUE_SIZE),
    ("virtio_pci.h", "VIRTIO_PCI_COMMON_Q_MSIX", pci.COMMON_QUEUE_MSIX_VECTOR),
    ("virtio_pci.h", "VIRTIO_PCI_COMMON_Q_ENABLE", pci.COMMON_QUEUE_ENABLE),
    ("virtio_pci.h", "VIRTIO_PCI_COMMON_Q_NOFF", pci.COMMON_QUEUE_NOTIFY_OFF),
    ("virtio_pci.h", "VIRTIO_PCI_COMMON_Q_DESCLO", pci.COMMON_QUEUE_DESC),
    ("virtio_pci.h", "VIRTIO_PCI_COMMON_Q_AVAILLO", pci.COMMON_QUEUE_DRIVER),
    ("virtio_pci.h", "VIRTIO_PCI_COMMON_Q_USEDLO", pci.COMMON_QUEUE_DEVICE),
    ("virtio_pci.h", "VIRTIO_MSI_NO_VECTOR", pci.NO_VECTOR),
    ("virtio_pci.h", "VIRTIO_PCI_ISR_CONFIG", pci.ISR_CONFIG),
    ("virtio_pci.h", "VIRTIO_PCI_HOST_FEATURES", pci.LEGACY_DEVICE_FEATURES),
    ("virtio_pci.h", "VIRTIO_PCI_GUEST_FEATURES", pci.LEGACY_DRIVER_FEATURES),
    ("virtio_pci.h", "VIRTIO_PCI_QUEUE_PFN", pci.LEGACY_QUEUE_ADDRESS),
    ("virtio_pci.h", "VIRTIO_PCI_QUEUE_NUM", pci.LEGACY_QUEUE_SIZE),
    ("virtio_pci.h", "VIRTIO_PCI_QUEUE_SEL", pci.LEGACY_QUEUE_SELECT),
    ("virtio_pci.h", "VIRTIO_PCI_QUEUE_NOTIFY", pci.LEGACY_QUEUE_NOTIFY),
    ("virtio_pci.h", "VIRTIO_PCI_STATUS", pci.LEGACY_DEVICE_STATUS),
    ("virtio_pci.h", "VIRTIO_PCI_ISR", pci.LEGACY_ISR),
    ("virtio_pci.h", "VIRTIO_MSI_CONFIG_VECTOR", pci.LEGACY_CONFIG_VECTOR),
    ("virtio_pci.h", "VIRTIO_MSI_QUEUE_VECTOR", pci.LEGACY_QUEUE_VECTOR),
    ("virtio_pci.h", "VIRTIO_PCI_QUEUE_ADDR_SHIFT", pci.LEGACY_QUEUE_ADDRESS_SHIFT),
    ("virtio_pci.h", "VIRTIO_PCI_VRING_ALIGN", pci.LEGACY_QUEUE_ALIGN),
    ("pci_regs.h", "PCI_COMMAND", pci.CFG_COMMAND),
    ("pci_regs.h", "PCI_COMMAND_MEMORY", pci.Command.MEMORY),
    ("pci_regs.h", "PCI_COMMAND_MASTER", pci.Command.MASTER),
    ("pci_regs.h", "PCI_COMMAND_INTX_DISABLE", pci.Command.INTX_DISABLE),
    ("pci_regs.h", "PCI_STATUS", pci.CFG_STATUS),
    ("pci_regs.h", "PCI_STATUS_INTERRUPT", pci.STATUS_INTERRUPT),
    ("pci_regs.h", "PCI_STATUS_CAP_LIST", pci.STATUS_CAP_LIST),
    ("pci_regs.h", "PCI_REVISION_ID", pci.CFG_REVISION_ID),
    ("pci_regs.h", "PCI_HEADER_TYPE", pci.CFG_HEADER_TYPE),
    ("pci_regs.h", "PCI_BASE_ADDRESS_0", pci.CFG_BAR0),
    ("pci_regs.h", "PCI_BASE_ADDRESS_SPACE_IO", pci.BAR_IO),
    ("pci_regs.h", "PCI_BASE_ADDRESS_MEM_TYPE_64", pci.BAR_TYPE_64),
    ("pci_regs.h", "PCI_SUBSYSTEM_VENDOR_ID", pci.CFG_SUBSYSTEM_VENDOR_ID),
    ("pci_regs.h", "PCI_SUBSYSTEM_ID", pci.CFG_SUBSYSTEM_ID),
    ("pci_regs.h", "PCI_CAPABILITY_LIST", pci.CFG_CAPABILITIES_POINTER),
    ("pci_regs.h", "PCI_INTERRUPT_PIN", pci.CFG_INTERRUPT_PIN),
    ("pci_regs.h", "PCI_CAP_ID_PM", pci.CapId.PM),
    ("pci_regs.h", "PCI_CAP_ID_MSI", pci.CapId.MSI),
    ("pci_regs.h", "PCI_CAP_ID_VNDR", pci.CapId.VENDOR),
    ("pci_regs.h", "PCI_CAP_ID_EXP", pci.CapId.EXPRESS),
    ("pci_regs.h", "PCI_CAP_ID_MSIX", pci.CapId.MSIX),
    ("pci_regs.h", "PCI_CAP_ID_AF", pci.CapId.AF),
    ("pci_regs.h", "PCI_CAP_ID_EA", pci.CapId.EA),
    ("pci_regs.h", "PCI_EXT_CAP_ID_SRIOV", pci.EXT_CAP_SRIOV),
    ("pci_regs.h", "PCI_PM_CTRL", pci.PM_CONTROL),
    ("pci_regs.h", "PCI_PM_CTRL_STATE_MASK", pci.PM_CONTROL_STATE_MASK),
    ("pci_regs.h", "PCI_PM_CTRL_NO_SOFT_RESET", pci.PM_CONTROL_NO_SOFT_RESET),
    ("pci_regs.h", "PCI_EXP_DEVCAP", pci.EXPRESS_DEVICE_CAP),
    ("pci_regs.h", "PCI_EXP_DEVCAP_FLR", pci.EXPRESS_DEVICE_CAP_FLR),
    ("pci_regs.h", "PCI_AF_CAP", pci.AF_CAP),
    ("pci_regs.h", "PCI_AF_CAP_FLR", pci.AF_CAP_FLR),
    ("pci_regs.h", "PCI_MSIX_FLAGS", pci.MSIX_CONTROL),
    ("pci_regs.h", "PCI_MSIX_FLAGS_QSIZE", pci.MSIX_CONTROL_SIZE_MASK),
    ("pci_regs.h", "PCI_MSIX_FLAGS_MASKALL", pci.MSIX_CONTROL_MASK_ALL),
    ("pci_regs.h", "PCI_MSIX_FLAGS_ENABLE", pci.MSIX_CONTROL_ENABLE),
    ("pci_regs.h", "PCI_MSIX_TABLE", pci.MSIX_TABLE),
    ("pci_regs.h", "PCI_MSIX_TABLE_BIR", pci.MSIX_BIR_MASK),
    ("pci_regs.h", "PCI_MSIX_TABLE_OFFSET", pci.MSIX_OFFSET_MASK),
    ("pci_regs.h", "PCI_MSIX_PBA", pci.MSIX_PBA),
    ("pci_regs.h", "PCI_MSIX_ENTRY_SIZE", pci.MSIX_ENTRY_SIZE),
    ("pci_regs.h", "PCI_CAP_MSIX_SIZEOF", pci.MSIX_CAP_SIZE),
    ("virtio_ring.h", "VRING_DESC_F_NEXT", ring.DESC_F_NEXT),
    ("virtio_ring.h", "VRING_DESC_F_WRITE", ring.DESC_F_WRITE),
    ("virtio_ring.h", "VRING_DESC_F_INDIRECT", ring.DESC_F_INDIRECT),
    ("virtio_ring.h", "VRING_USED_F_NO_NOTIFY", ring.USED_F_NO_NOTIFY),
    ("virtio_ring.h", "VRING_AVAIL_F_NO_INTERRUPT", ring.AVAIL_F_NO_INTERRUPT),
    ("virtio_ring.h", "VRING_AVAIL_ALIGN_SIZE", ring.AVAIL_ALIGN),
    ("virtio_ring.h", "VRING_USED_ALIGN_SIZE", ring.USED_ALIGN),
    ("virtio_ring.h", "VRING_DESC_ALIGN_SIZE", ring.DESC_ALIGN),
    ("virtio_ring.h", "VRING_PACKED_EVENT_FLAG_ENABLE", ring.PACKED_EVENT_ENABLE),
    ("virtio_ring.h", "VRING_PACKED_EVENT_FLAG_DISABLE", ring.PACKED_EVENT_DISABLE),
    ("virtio_ring.h", "VRING_PACKED_EVENT_FLAG_DESC", ring.PACKED_EVENT_DESC),
    ("virtio_balloon.h", "VIRTIO_BALLOON_PFN_SHIFT", page.PFN_SHIFT),
    ("virtio_balloon.h", "VIRTIO_BALLOON_CMD_ID_STOP", balloon.CMD_ID_STOP),
    ("virtio_balloon.h", "VIRTIO_BALLOON_CMD_ID_DONE", balloon.CMD_ID_DONE),
    ("virtio_blk.h", "VIRTIO_BLK_ID_BYTES", blk.ID_SIZE),
    ("virtio_blk.h", "VIRTIO_BLK_T_IN", blk.Request.IN),
    ("virtio_blk.h", "VIRTIO_BLK_T_OUT", blk.Request.OUT),
    ("virtio_blk.h", "VIRTIO_BLK_T_FLUSH", blk.Request.FLUSH),
    ("virtio_blk.h", "VIRTIO_BLK_T_GET_ID", blk.Request.GET_ID),
    ("virtio_blk.h", "VIRTIO_BLK_T_DISCARD", blk.Request.DISCARD),
    ("virtio_blk.h", "VIRTIO_BLK_T_WRITE_ZEROES", blk.Request.WRITE_ZEROES),
    ("virtio_blk.h", "VIRTIO_BLK_T_SECURE_ERASE", blk.Request.SECURE_ERASE),
    ("virtio_blk.h", "VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP", blk.SEGMENT_F_UNMAP),
    ("virtio_mmio.h", "VIRTIO_MMIO_MAGIC_VALUE", mmio.MAGIC_VALUE_REG),
    ("virtio_mmio.h", "VIRTIO_MMIO_VERSION", mmio.VERSION_REG),
    ("virtio_mmio.h", "VIRTIO_MMIO_QUEUE_NUM_MAX", mmio.QUEUE_SIZE_MAX),
    ("virtio_mmio.h", "VIRTIO_MMIO_QUEUE_NUM", mmio.QUEUE_SIZE),
    ("virtio_mmio.h", "VIRTIO_MMIO_QUEUE_AVAIL_LOW", mmio.QUEUE_DRIVER_LOW),
    ("virtio_mmio.h", "VIRTIO_MMIO_QUEUE_AVAIL_HIGH", mmio.QUEUE_DRIVER_HIGH),
    ("virtio_mmio.h", "VIRTIO_MMIO_QUEUE_USED_LOW", mmio.QUEUE_DEVICE_LOW),
    ("virtio_mmio.h", "VIRTIO_MMIO_QUEUE_USED_HIGH", mmio.QUEUE_DEVICE_HIGH),
    ("virtio_mmio.h", "VIRTIO_MMIO_INT_VRING", mmio.Interrupt.USED_BUFFER),
    ("virtio_mmio.h", "VIRTIO_MMIO_INT_CONFIG", mmio.Interrupt.CONFIG_CHANGE),
]


@pytest.mark.parametrize(("header", "name", "ours"), HEADER_NAMES, ids=[name for _, name, _ in HEADER_NAMES])
def test_a_number_agrees_with_the_header(header, name, ours):
    assert defines(header)[name] == ours


def test_mmio_registers_that_share_their_name_with_the_header_agree():
    checked = 0
    for name, number in defines("virtio_mmio.h").items():
        ours = getattr(mmio, name.removeprefix("VIRTIO_MMIO_"), None)
        if isinstance(ours, int) and name not in ("VIRTIO_MMIO_VERSION",):
            assert ours == number, name
            checked += 1
    assert checked >= 24


def test_packed_flags_are_masks_where_the_header_has_bit_numbers():
    known = defines("virtio_ring.h")
    assert bit(known["VRING_PACKED_DESC_F_AVAIL"]) == ring.PACKED_DESC_F_AVAIL
    assert bit(known["VRING_PACKED_DESC_F_USED"]) == ring.PACKED_DESC_F_USED
    assert bit(known["VRING_PACKED_EVENT_F_WRAP_CTR"]) == ring.PACKED_EVENT_WRAP


def test_the_balloons_statistics_agree_with_the_header():
    known = defines("virtio_balloon.h")
    for tag in balloon.Stat:
        # The tags from 10 on are younger than some headers.
        assert (
            known.get(f"VIRTIO_BALLOON_S_{tag.name}", tag if tag >= known["VIRTIO_BALLOON_S_NR"] else None) == tag
        )


KERNEL_ID_NAMES = {
    "BLOCK": "blk",
    "CLOCK": "rtc",
    "I2C_ADAPTER": "i2c",
    "MAC80211_HWSIM": "mac80211-hwsim",
    "MAC80211_WLAN": "mac80211-wlan",
}


def test_device_ids_agree_with_the_header():
    known = {name: number for name, number in defines("virtio_ids.h").items() if name.startswith("VIRTIO_ID_")}
    assert len(known) > 30
    for name, number in known.items():
        kernel = name.removeprefix("VIRTIO_ID_")
        ours = KERNEL_ID_NAMES.get(kernel, kernel.lower().replace("_", "-"))
        assert ids.type_id(ours) in (number, None), name
        if number <= 41:
            assert ids.type_name(number) == ours, name


def test_transitional_ids_agree_with_the_header():
    known = {name: number for name, number in defines("virtio_ids.h").items() if "TRANS_ID" in name}
    assert known
    for name, number in known.items():
        kernel = name.removeprefix("VIRTIO_TRANS_ID_")
        assert ids.TRANSITIONAL[number] == ids.type_id(KERNEL_ID_NAMES.get(kernel, kernel.lower())), name


def test_input_codes_agree_with_the_headers():
    known = {**defines("input-event-codes.h"), **defines("input.h")}
    tables = [table for table in vars(input_codes).values() if isinstance(table, dict)]
    checked = 0
    for table in tables:
        for key, value in table.items():
            name, number = (value, key) if isinstance(value, str) else (key, value)
            if name in known:
                assert known[name] == number, name
                checked += 1
    assert checked > 700
    # The headers here may be older than the tables: then there was room for less.
    for prefix, count in input_codes.COUNTS.items():
        assert known[f"{prefix}_MAX"] + 1 <= count, prefix
    for kind, count in inp.OLDER_COUNTS.items():
        assert count <= known[f"{inp.type_name(kind).removeprefix('EV_')}_MAX"] + 1, "Linux 6.1 and later"
    assert known["EV_MAX"] + 1 == inp.EV_CNT
    for name in ("EV_SYN", "EV_KEY", "EV_REL", "EV_ABS", "EV_LED", "EV_FF_STATUS", "SYN_REPORT", "SYN_DROPPED"):
        assert getattr(inp, name) == known[name]


# --- struct layouts, as a C compiler sees them ------------------------------------------------------------

# (header, struct, our layout, our size, names that are spelled differently there)
STRUCTS = [
    (
        "virtio_pci.h",
        "virtio_pci_common_cfg",
        pci.COMMON_CFG[:16],
        pci.COMMON_CFG_MIN_SIZE,
        {
            "driver_feature_select": "guest_feature_select",
            "driver_feature": "guest_feature",
            "config_msix_vector": "msix_config",
            "queue_desc": "queue_desc_lo",
            "queue_driver": "queue_avail_lo",
            "queue_device": "queue_used_lo",
        },
    ),
    ("virtio_pci.h", "virtio_pci_cap", pci.CAP, pci.CAP_SIZE, {}),
    ("virtio_pci.h", "virtio_pci_notify_cap", (Field("notify_off_multiplier", 16, 4),), pci.NOTIFY_CAP_SIZE, {}),
    (
        "virtio_pci.h",
        "virtio_pci_cap64",
        (Field("offset_hi", pci.CAP64_OFFSET_HIGH, 4), Field("length_hi", pci.CAP64_LENGTH_HIGH, 4)),
        pci.CAP64_SIZE,
        {},
    ),
    ("virtio_pci.h", "virtio_pci_cfg_cap", (Field("pci_cfg_data", 16, 4),), pci.PCI_CFG_CAP_SIZE, {}),
    ("virtio_ring.h", "vring_desc", ring.DESC, ring.DESC_SIZE, {}),
    ("virtio_ring.h", "vring_used_elem", ring.USED_ENTRY, ring.USED_ENTRY_SIZE, {}),
    ("virtio_ring.h", "vring_packed_desc", ring.PACKED_DESC, ring.DESC_SIZE, {}),
    (
        "virtio_ring.h",
        "vring_packed_desc_event",
        ring.PACKED_EVENT,
        ring.PACKED_EVENT_SIZE,
        {"desc": "off_wrap"},
    ),
    ("virtio_balloon.h", "virtio_balloon_config", balloon.CONFIG, balloon.CONFIG_SIZE, {}),
    ("virtio_balloon.h", "virtio_balloon_stat", balloon.STAT, balloon.STAT_SIZE, {}),
    ("virtio_input.h", "virtio_input_config", inp.CONFIG, inp.CONFIG_SIZE, {}),
    ("virtio_input.h", "virtio_input_absinfo", inp.ABSINFO, inp.ABSINFO_SIZE, {}),
    ("virtio_input.h", "virtio_input_devids", inp.DEVIDS, inp.DEVIDS_SIZE, {}),
    ("virtio_input.h", "virtio_input_event", inp.EVENT, inp.EVENT_SIZE, {}),
    ("virtio_mem.h", "virtio_mem_config", mem.CONFIG, mem.CONFIG_SIZE, {}),
    (
        "virtio_mem.h",
        "virtio_mem_req",
        mem.REQUEST[:2],
        mem.REQUEST_SIZE,
        {},
    ),
    ("virtio_mem.h", "virtio_mem_resp", mem.RESPONSE, mem.RESPONSE_SIZE, {"state": "u.state.state"}),
    ("virtio_blk.h", "virtio_blk_outhdr", blk.HEADER, blk.HEADER_SIZE, {"reserved": "ioprio"}),
    ("virtio_blk.h", "virtio_blk_discard_write_zeroes", blk.SEGMENT, blk.SEGMENT_SIZE, {}),
    (
        "virtio_blk.h",
        "virtio_blk_config",
        tuple(field for field in blk.CONFIG if field.offset < 57),  # what the headers of Linux 6.1 have
        None,
        {
            "cylinders": "geometry.cylinders",
            "heads": "geometry.heads",
            "sectors": "geometry.sectors",
            "writeback": "wce",
            "unused0": "unused",
        },
    ),
]


def test_struct_layouts_agree_with_the_headers(tmp_path):
    headers = sorted({header for header, *_ in STRUCTS})
    for header in headers:
        defines(header)
    lines, expected = [], {}
    for _, struct, fields, size, other in STRUCTS:
        if size is not None:
            lines.append(size_of(struct))
            expected[struct] = [size]
        for field in fields:
            member = other.get(field.name, field.name)
            # The high half of a 64-bit register is a member of its own in the header.
            lines.append(place_of(struct, field.name, member, 2 if member.endswith("_lo") else 1))
            expected[f"{struct}.{field.name}"] = [field.offset, field.width]
    seen = printed(tmp_path, headers, lines)
    assert seen == expected


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        (pci.CAP, pci.CAP_SIZE),
        (pci.COMMON_CFG, pci.COMMON_CFG_SIZE),
        (pci.MSIX_ENTRY, pci.MSIX_ENTRY_SIZE),
        (ring.DESC, ring.DESC_SIZE),
        (ring.PACKED_DESC, ring.DESC_SIZE),
        (ring.USED_ENTRY, ring.USED_ENTRY_SIZE),
        (balloon.CONFIG, balloon.CONFIG_SIZE),
        (balloon.STAT, balloon.STAT_SIZE),
        (inp.CONFIG, inp.CONFIG_SIZE),
        (inp.EVENT, inp.EVENT_SIZE),
        (mem.CONFIG, mem.CONFIG_SIZE),
        (mem.REQUEST, mem.REQUEST_SIZE),
        (mem.RESPONSE, mem.RESPONSE_SIZE),
        (blk.CONFIG, blk.CONFIG_SIZE),
        (blk.HEADER, blk.HEADER_SIZE),
        (blk.SEGMENT, blk.SEGMENT_SIZE),
        (blk.LIFETIME, blk.LIFETIME_SIZE),
        (rng.CONFIG, rng.CONFIG_SIZE),
    ],
)
def test_a_layout_has_no_gap_no_overlap_and_the_size_it_says(fields, size):
    end = 0
    for field in fields:
        assert field.offset == end, field
        end = field.end
    assert end == layout.size(fields) == size
    assert len(layout.by_name(fields)) == len(fields)


def test_the_common_configurations_constants_are_its_layout():
    for field in pci.COMMON_CFG:
        assert getattr(pci, f"COMMON_{field.name.upper()}") == field.offset
    assert layout.by_name(pci.COMMON_CFG).keys() >= pci.COMMON_CFG_READ_ONLY


@pytest.mark.parametrize("table", [mmio.REGISTERS, mmio.LEGACY_REGISTERS])
def test_mmio_registers_are_aligned_and_below_the_configuration(table):
    offsets = [field.offset for field, _ in table]
    assert offsets == sorted(set(offsets))
    assert all(field.width == 4 and field.offset % 4 == 0 and field.end <= mmio.CONFIG for field, _ in table)


# --- ids --------------------------------------------------------------------------------------------------


def test_names_and_ids_of_types_are_each_others_inverse():
    for device_id in range(200):
        assert ids.type_id(ids.type_name(device_id)) == device_id
    assert ids.type_name(99) == "unknown(99)"
    assert ids.type_id("virtio-balloon") == 5
    assert ids.type_id("teapot") is None
    assert ids.type_id("unknown(0x5)") is None
    assert len({entry.name for entry in ids.TYPES}) == len({entry.id for entry in ids.TYPES}) == len(ids.TYPES)


@pytest.mark.spec("PCI-ID-01")
def test_modern_pci_ids_are_0x1040_plus_the_type():
    for device in range(0x1041, 0x1080):
        assert ids.device_id_of_pci(0x1AF4, device) == device - 0x1040
    for device in (0x0FFF, 0x1040, 0x1080, 0x1100, 0x1110):
        assert ids.device_id_of_pci(0x1AF4, device) is None
    assert ids.device_id_of_pci(0x8086, 0x1045) is None


@pytest.mark.spec("PCI-ID-02")
def test_transitional_pci_ids_are_known_one_by_one():
    named = {device: ids.type_name(ids.device_id_of_pci(0x1AF4, device)) for device in ids.TRANSITIONAL}
    assert named == {
        0x1000: "net",
        0x1001: "blk",
        0x1002: "balloon",
        0x1003: "console",
        0x1004: "scsi",
        0x1005: "rng",
        0x1009: "9p",
    }
    assert ids.device_id_of_pci(0x1AF4, 0x1006) is None
    assert ids.is_transitional_pci(0x1AF4, 0x1006)


# --- status -----------------------------------------------------------------------------------------------


def test_status_is_described_with_every_bit():
    assert status.describe(0) == "0 (reset)"
    assert status.describe(0x0F) == "ACKNOWLEDGE|DRIVER|DRIVER_OK|FEATURES_OK"
    assert status.describe(0xE1) == "ACKNOWLEDGE|0x20|DEVICE_NEEDS_RESET|FAILED"
    assert status.Status.describe(0x50) == "SUSPEND|DEVICE_NEEDS_RESET"


# --- features ---------------------------------------------------------------------------------------------


@given(
    st.integers(min_value=0, max_value=features.ALL),
    st.sampled_from([*features.DEVICE_BITS, "rng", "unknown(77)"]),
)
def test_all_128_bits_are_decoded_and_none_is_lost(word, type_name):
    found = features.names(type_name, word)
    assert mask(*(entry.bit for entry in found)) == word
    parts = features.decode(type_name, word)
    assert sorted(entry.bit for entry in parts.device + parts.ring + parts.future) == features.bits(word)


def test_bits_are_named_for_their_type():
    assert [entry.name for entry in features.names("balloon", 0b100101)] == [
        "MUST_TELL_HOST",
        "DEFLATE_ON_OOM",
        "PAGE_REPORTING",
    ]
    [entry] = features.names("balloon", bit(5))
    assert (entry.section, entry.kind, entry.known) == ("5.5.3", Kind.DEVICE, True)
    [entry] = features.names("rng", bit(5))
    assert (entry.name, entry.section, entry.known) == ("bit 5", "", False)
    [entry] = features.names("input", bit(32))
    assert (entry.name, entry.section, entry.kind) == ("VERSION_1", "6", Kind.RING)
    [entry] = features.names("blk", bit(0))
    assert (entry.name, entry.section) == ("BARRIER", "5.2.3.1")
    assert features.names("net", bit(127))[0].name == "bit 127"
    with pytest.raises(Misuse, match="negative"):
        features.names("net", -1)


def test_the_ranges_of_bits_are_those_of_the_standard():
    kinds = [features.kind(number) for number in range(130)]
    assert set(kinds[0:24]) == {Kind.DEVICE}
    assert set(kinds[24:42]) == {Kind.RING}
    assert (kinds[42], kinds[43]) == (Kind.DEVICE, Kind.RING)
    assert set(kinds[44:50]) == {Kind.FUTURE}
    assert set(kinds[50:128]) == {Kind.DEVICE}
    assert set(kinds[128:]) == {Kind.FUTURE}
    assert mask(*Reserved) & features.DEVICE_TYPE_MASK == 0


def test_every_named_bit_of_a_type_lies_in_the_types_range():
    for family, _ in features.DEVICE_BITS.values():
        for entry in family:
            assert features.kind(entry) is Kind.DEVICE, entry


def test_the_types_with_dependencies_are_those_of_the_table():
    assert features.DEPENDS.keys() == features.WITH_DEPENDENCIES


@st.composite
def dependencies(draw):
    numbers = st.integers(min_value=0, max_value=15)
    rule = st.builds(Needs, numbers, st.lists(numbers, min_size=1, max_size=3).map(tuple))
    return draw(st.lists(rule, max_size=12))


@pytest.mark.spec("FEAT-01", "FEAT-02")
@given(st.integers(min_value=0, max_value=0xFFFF), st.integers(min_value=0, max_value=0xFFFF), dependencies())
def test_resolve_takes_what_is_offered_wanted_and_has_its_need(offered, wanted, rules):
    taken = features.resolve(offered, wanted, rules)
    assert taken & ~offered == 0
    assert taken & ~wanted == 0
    assert features.unmet(taken, rules) == []
    # It is the largest such word: every sound subset of offered & wanted is inside it.
    subset = offered & wanted & 0x00FF
    if not features.unmet(subset, rules):
        assert subset & ~taken == 0
    assert features.resolve(taken, taken, rules) == taken


@pytest.mark.fault(22)
@pytest.mark.spec("FEAT-02")
def test_a_bit_falls_with_the_bit_that_it_needs_and_takes_others_along():
    rules = features.dependencies("net")
    everything = features.known("net")
    assert features.resolve(everything, everything, rules) == everything
    without = features.resolve(everything & ~bit(Net.CTRL_VQ), everything, rules)
    for number in (Net.RSS, Net.RSS_CONTEXT, Net.HASH_TUNNEL, Net.MQ, Net.CTRL_RX):
        assert not features.has(without, number)
    assert features.has(without, Net.MAC)
    one_of_two = bit(Net.CSUM) | bit(Net.HOST_TSO6) | bit(Net.HOST_ECN)
    assert features.resolve(one_of_two, one_of_two, rules) == one_of_two
    assert features.resolve(one_of_two & ~bit(Net.CSUM), one_of_two, rules) == 0


@pytest.mark.spec("FEAT-02")
def test_without_version_1_nothing_above_bit_32_is_taken():
    for type_name in ("rng", "net", "balloon"):
        rules = features.dependencies(type_name)
        taken = features.resolve(features.ALL & ~bit(Reserved.VERSION_1), features.ALL, rules)
        assert taken & ~features.LEGACY_MASK == 0


@pytest.mark.fault(22)
@pytest.mark.spec("BAL-F03")
def test_page_reporting_is_taken_only_with_page_poison():
    rules = features.dependencies("balloon")
    both = bit(Balloon.PAGE_REPORTING) | bit(Balloon.PAGE_POISON)
    assert features.resolve(both, both, rules) == both
    assert features.resolve(both, bit(Balloon.PAGE_REPORTING), rules) == 0
    assert features.resolve(bit(Balloon.PAGE_REPORTING), both, rules) == 0


# --- rings ------------------------------------------------------------------------------------------------


def test_ring_parts_have_the_sizes_and_offsets_of_the_standard():
    assert [ring.desc_size(q) for q in (1, 8, 256)] == [16, 128, 4096]
    assert [ring.avail_size(q) for q in (1, 8, 256)] == [8, 22, 518]
    assert [ring.used_size(q) for q in (1, 8, 256)] == [14, 70, 2054]
    assert ring.used_event_offset(8) == 20
    assert ring.avail_event_offset(8) == 68
    assert [q for q in range(70000) if ring.is_power_of_two(q)] == [1 << n for n in range(16)]


@given(st.integers(min_value=0, max_value=15), st.sampled_from([4096, 16384, 65536]))
def test_layouts_are_aligned_and_their_parts_do_not_overlap(power, align):
    q = 1 << power
    parts = ring.legacy_layout(q, align)
    assert parts.desc % 16 == parts.avail % 2 == parts.used % align == 0
    assert parts.desc + ring.desc_size(q) <= parts.avail
    assert parts.avail + ring.avail_size(q) <= parts.used
    assert parts.used + ring.used_size(q) <= parts.total


@pytest.mark.spec("SPL-L02")
def test_the_legacy_layout_is_the_one_that_devices_have():
    # Linux's vring_init and vring_size: used starts at the page after the available ring.
    for q, used, total in [
        (16, 4096, 8192),
        (64, 4096, 8192),
        (128, 4096, 8192),
        (256, 8192, 12288),
        (1024, 20480, 32768),
    ]:
        parts = ring.legacy_layout(q)
        assert (parts.used, parts.total) == (used, total)


# --- input names ------------------------------------------------------------------------------------------


def test_events_are_named_as_evtest_names_them():
    assert inp.type_name(1) == "EV_KEY"
    assert inp.code_name(1, 30) == "KEY_A"
    assert inp.code_name(1, 0x110) == "BTN_LEFT"
    assert inp.code_name(0, 0) == "SYN_REPORT"
    assert inp.code_name(17, 1) == "LED_CAPSL"
    assert inp.prop_name(0) == "INPUT_PROP_POINTER"
    assert inp.bus_name(6) == "BUS_VIRTUAL"
    assert (inp.type_name(0x99), inp.code_name(0x99, 3), inp.code_name(1, 0x2FE)) == ("0x99", "0x3", "0x2fe")


# What came between Linux 6.1 and 7.2, as <linux/input-event-codes.h> and <linux/input.h> of 7.2 have it.
NEWER = {
    "BTN_GRIPL": 0x224,
    "BTN_GRIPR": 0x225,
    "BTN_GRIPL2": 0x226,
    "BTN_GRIPR2": 0x227,
    "KEY_CAMERA_ACCESS_ENABLE": 0x24B,
    "KEY_CAMERA_ACCESS_DISABLE": 0x24C,
    "KEY_CAMERA_ACCESS_TOGGLE": 0x24D,
    "KEY_ACCESSIBILITY": 0x24E,
    "KEY_DO_NOT_DISTURB": 0x24F,
    "KEY_EPRIVACY_SCREEN_ON": 0x252,
    "KEY_EPRIVACY_SCREEN_OFF": 0x253,
    "KEY_ACTION_ON_SELECTION": 0x254,
    "KEY_CONTEXTUAL_INSERT": 0x255,
    "KEY_CONTEXTUAL_QUERY": 0x256,
    "KEY_PERFORMANCE": 0x2BD,
    "ABS_SND_PROFILE": 0x22,
    "SW_USB_INSERT": 0x11,
    "FF_HAPTIC": 0x4F,
}


def test_names_that_are_newer_than_many_headers():
    for name, code in NEWER.items():
        prefix = name.partition("_")[0]
        kind = {"BTN": inp.EV_KEY, "KEY": inp.EV_KEY, "ABS": inp.EV_ABS, "SW": inp.EV_SW, "FF": inp.EV_FF}[prefix]
        assert inp.code_of(name) == (kind, code) and inp.code_name(kind, code) == name
        assert code < inp.CODE_COUNTS[kind], "or a device's would be left out"
    assert inp.prop_name(7) == "INPUT_PROP_PRESSUREPAD"
    assert inp.bus_name(0x21) == "BUS_SDW"
    assert inp.CODE_COUNTS == {0: 16, 1: 768, 2: 16, 3: 64, 4: 8, 5: 18, 0x11: 16, 0x12: 8, 0x14: 2, 0x15: 128}
    assert (inp.EV_CNT, inp.PROP_COUNT) == (32, 32)
    # The values of ABS_SND_PROFILE begin as sounds do, and are none.
    assert not any("PROFILE" in name for name in (*input_codes.SND.values(), *input_codes.ALIASES))


def test_every_code_is_found_by_its_name_and_by_its_old_one():
    for event_type, table in inp._CODES.items():
        for code, name in table.items():
            assert inp.code_of(name) == (event_type, code)
    assert inp.code_of("BTN_MOUSE") == (inp.EV_KEY, 0x110)
    assert inp.code_of("SW_RADIO") == (inp.EV_SW, 3)
    assert inp.code_of("KEY_NONSENSE") is None
    assert all(inp.code_of(name) is not None for name in input_codes.ALIASES)
