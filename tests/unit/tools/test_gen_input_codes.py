"""tools/gen-input-codes: what is a code among the names of a header, and how many codes there is room for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

TOOL = Path(__file__).resolve().parents[3] / "tools" / "gen-input-codes"

EVENT_CODES = """\
#define INPUT_PROP_POINTER\t\t0x00\t/* needs a pointer */
#define INPUT_PROP_MAX\t\t\t0x1f
#define INPUT_PROP_CNT\t\t\t(INPUT_PROP_MAX + 1)
#define EV_SW\t\t\t0x05
#define KEY_BRIGHTNESS_MAX\t0x251
#define KEY_MAX\t\t\t0x2ff
#define KEY_CNT\t\t\t(KEY_MAX+1)
#define SW_RFKILL_ALL\t\t0x03
#define SW_RADIO\t\tSW_RFKILL_ALL\t/* deprecated */
#define SW_NEWEST\t\t0x12
#define SW_MAX\t\t\t0x12
#define SW_CNT\t\t\t(SW_MAX+1)
#define SND_BELL\t\t0x01
#define SND_PROFILE_SILENT\t0x00
"""
INPUT = "#define EV_VERSION\t\t0x010001\n#define BUS_PCI\t\t\t0x01\n#define FF_STATUS_MAX\t0x01\n"


def test_tables_and_counts(tmp_path: Path) -> None:
    (tmp_path / "linux").mkdir()
    (tmp_path / "linux" / "input-event-codes.h").write_text(EVENT_CODES)
    (tmp_path / "linux" / "input.h").write_text(INPUT)
    (tmp_path / "linux" / "version.h").write_text("#define LINUX_VERSION_CODE 459277\n")
    made = subprocess.run(
        [sys.executable, str(TOOL), str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    tables: dict[str, Any] = {}
    exec(made, tables)  # it is a module
    assert "Linux\n7.2; do not edit" in made
    assert tables["SW"] == {3: "SW_RFKILL_ALL", 0x12: "SW_NEWEST"}
    assert tables["KEY"] == {0x251: "KEY_BRIGHTNESS_MAX"}
    assert tables["COUNTS"] == {"INPUT_PROP": 32, "KEY": 0x300, "SW": 0x13}
    assert tables["ALIASES"] == {"SW_RADIO": 3}
    assert (tables["SND"], tables["TYPES"], tables["BUSES"]) == ({1: "SND_BELL"}, {5: "EV_SW"}, {1: "BUS_PCI"})
