"""What the pages have to agree on with each other."""

from __future__ import annotations

import re
import sys
from pathlib import Path

CHECKOUT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").exists())
sys.path.insert(0, str(CHECKOUT / "tools"))

from lab import cli_matrix  # noqa: E402


def rows(page: str) -> list[list[str]]:
    """The cells of the table that tools/matrix wrote into a page."""
    between = (CHECKOUT / page).read_text().partition(cli_matrix.BEGIN)[2].partition(cli_matrix.END)[0]
    lines = [line for line in between.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_table_of_readme_is_that_of_the_page_without_counts() -> None:
    table: cli_matrix.Table = {}
    for transport, backend, ring, *cells in rows("docs/tested.md"):
        for device, cell in zip(cli_matrix.DEVICES, cells, strict=True):
            if counted := re.fullmatch(r"(.+) \((\d+)\)", cell):
                found = cli_matrix.Found(int(counted[2]), set(counted[1].split(", ")))
                table[transport, backend, ring, device] = found
    assert table
    assert (
        cli_matrix.replaced((CHECKOUT / "docs/tested.md").read_text(), cli_matrix.draw(table))
        == (CHECKOUT / "docs/tested.md").read_text()
    )
    readme = (CHECKOUT / "README.md").read_text()
    assert cli_matrix.replaced(readme, cli_matrix.glance(table)) == readme


def test_the_page_about_diag_has_the_steps_and_every_fault_that_is_tested() -> None:
    from tests.unit.diag.test_diag import FAULTS
    from uvirtio.diag import STEPS

    page = (CHECKOUT / "docs/diag.md").read_text()
    table = page.partition("## The steps")[2].partition("\n### ")[0]
    assert re.findall(r"^\| (\d+) \| \[([^\]]+)\]", table, re.MULTILINE) == [
        (str(number), name) for number, name in enumerate(STEPS, 1)
    ]
    sections = dict(re.findall(r"^### ([^\n]+)\n(.*?)(?=^##)", page, re.MULTILINE | re.DOTALL))
    assert all(any(name in heading for heading in sections) for name in STEPS)
    for step, code, _ in FAULTS:
        assert f"`{code}`" in sections[step], f"{code} ends in {step}, and the page does not say so"


def test_lines_are_not_wider_than_120_columns() -> None:
    """Tables, code and links apart, which cannot be wrapped."""
    for page in [
        *CHECKOUT.glob("*.md"),
        *(CHECKOUT / "docs").rglob("*.md"),
        *(CHECKOUT / "examples").glob("*.md"),
    ]:
        fenced = False
        for number, line in enumerate(page.read_text().splitlines(), 1):
            fenced ^= line.startswith("```")
            if fenced or line.startswith(("|", "    ", "```")) or "](" in line:
                continue
            assert len(line) <= 120, f"{page.name}:{number}"
