"""A list of verdicts in a file, to compare a run with: one version of a device with another."""

from __future__ import annotations

from uvirtio.conform.report import Report
from uvirtio.conform.verdict import Verdict
from uvirtio.errors import OperationFailed, UsageError

_LONGEST = 1 << 20


def text_of(report: Report) -> str:
    """The verdicts, a row on each line.

    Args:
        report: The finished run.
    """
    about = f"# uvirtio conform {report.address}: {report.implementation} {report.version}".rstrip(": ")
    lines = [f"{result.row.id} {result.verdict.value}" for result in report.results]
    return "\n".join([about, *sorted(lines)]) + "\n"


def read(name: str) -> dict[str, str] | None:
    """The verdicts in a file, by row; None: there is no such file yet.

    Args:
        name: The file.

    Raises:
        UsageError: It is no such list.
        OperationFailed: It cannot be read.
    """
    try:
        with open(name, encoding="utf-8") as file:  # noqa: PTH123
            text = file.read(_LONGEST + 1)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        seen = getattr(error, "strerror", None) or str(error)
        raise OperationFailed(f"{name} cannot be read", seen=seen, expected="a list of verdicts") from error
    if len(text) > _LONGEST:
        raise OperationFailed(
            f"{name} cannot be read", seen=f"more than {_LONGEST} characters", expected="a list of verdicts"
        )
    words = {verdict.value for verdict in Verdict}
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        row, _, verdict = line.strip().partition(" ")
        if not row.startswith("D-") or verdict not in words or row in found:
            raise UsageError(
                f"{name}:{number} is no line of a list of verdicts",
                seen=line,
                expected="a row and its verdict, such as: D-STAT-01 pass",
                remedy="remove the file; the next run with --expect writes it",
            )
        found[row] = verdict
    return found


def differences(report: Report, expected: dict[str, str]) -> list[str]:
    """What is otherwise than expected, a line each; rows that the run left out do not count.

    Args:
        report: The finished run.
        expected: What ``read`` returned.
    """
    found = []
    for result in report.results:
        before = expected.get(result.row.id)
        if before is None:
            found.append(f"{result.row.id}: {result.verdict.value}, and the list does not have it")
        elif before != result.verdict.value:
            found.append(f"{result.row.id}: {result.verdict.value}, expected {before}; {result.seen}".rstrip("; "))
    return found
