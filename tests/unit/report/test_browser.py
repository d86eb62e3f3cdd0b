"""Reports in headless Chromium: nothing on the console, nothing loaded, no page wider than its window."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.report.test_fleet import wrapped
from tests.unit.report.test_page import mangled
from uvirtio.report.fleet import fleet
from uvirtio.report.page import page
from uvirtio.report.runs import machine_runs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
]
PROBE = """
addEventListener("load", () => {
  const wide = document.documentElement.scrollWidth > innerWidth;
  const out = [...document.querySelectorAll("main *")].filter(
    (one) => !one.closest(".scroll, svg, pre") && one.getBoundingClientRect().right > innerWidth + 1
  );
  const style = getComputedStyle(document.body);
  document.title = JSON.stringify({
    wide, out: out.slice(0, 3).map((one) => one.outerHTML.slice(0, 80)), width: innerWidth,
    ground: style.backgroundColor,
    fills: [...document.querySelectorAll("rect.box")].map((one) => getComputedStyle(one).fill),
  });
});
"""

Documents = Callable[..., tuple[dict[str, Any], dict[str, Any]]]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def seen(file: Path, tmp_path: Path, *, width: int, dark: bool) -> dict[str, Any]:
    """What a browser makes of the page: measured by a script that is let in for the test alone."""
    text = file.read_text(encoding="utf-8")
    # The policy is what refuses everything else, so it stays, with one more word.
    probe = f'<script nonce="probe">{PROBE}</script>'
    probed = tmp_path / "probed.html"
    probed.write_text(
        text.replace("style-src", "script-src 'nonce-probe'; style-src", 1).replace("</body>", f"{probe}</body>"),
        encoding="utf-8",
    )
    # A window of Chromium is never narrower than 500 pixels; a frame of any width has a page of that width.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<!doctype html><style>iframe {{ width: {width}px; height: 900px; border: 0 }}</style>"
        f'<iframe src="{probed.name}" onload="document.title = 1"></iframe>'
        "<pre></pre><script>setInterval(() => { try { const t = frames[0].document.title;"
        ' if (t.startsWith("{")) document.querySelector("pre").textContent = t } catch (e) {} }, 50)</script>',
        encoding="utf-8",
    )
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]
    done = subprocess.run(
        [
            str(CHROMIUM),
            *FLAGS,
            *scheme,
            "--allow-file-access-from-files",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=3000",
            "--dump-dom",
            frame.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert console == []
    match = re.search(r"<pre>(\{.*?\})</pre>", done.stdout, re.DOTALL)
    assert match, done.stdout[-500:] + done.stderr[-500:]
    made: dict[str, Any] = json.loads(match[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert made["width"] == width
    return made


def looked_at(text: str, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(text, encoding="utf-8")
    grounds = set()
    for width, dark in ((360, False), (1600, True)):
        made = seen(file, tmp_path, width=width, dark=dark)
        assert not made["wide"], made["out"]
        assert not made["out"]
        assert not [fill for fill in made["fills"] if fill == "rgb(0, 0, 0)"]  # the style was let in
        grounds.add(made["ground"])
    assert grounds == {"rgb(255, 255, 255)", "rgb(15, 19, 24)"}


def test_a_report(documents: Documents, tmp_path: Path) -> None:
    looked_at(page(*documents(silent=True)), tmp_path)


def test_a_hostile_report_runs_nothing(documents: Documents, tmp_path: Path) -> None:
    dump, diag = documents(silent=True)
    looked_at(page(mangled(dump), mangled(diag)), tmp_path)


def test_a_fleet(documents: Documents, tmp_path: Path) -> None:
    files = [
        (f"{name}.json", wrapped(name, "0000:00:04.0", documents(silent=name == "b")[1]))
        for name in ("a", "b", "c")
    ]
    looked_at(fleet(machine_runs(files)), tmp_path)
