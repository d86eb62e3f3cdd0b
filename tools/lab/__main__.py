"""Entry point of tools/vm, tools/test, tools/demo and their like: the first argument says which."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the folder that has the package "lab"


def main() -> int:
    """Run the tool; the exit code."""
    from lab import LabError, process

    tool, *arguments = sys.argv[1:]
    try:
        module = importlib.import_module(f"lab.cli_{tool}")
        return int(module.main(arguments))
    except LabError as error:
        print(f"tools/{tool}: {error}", file=sys.stderr)
        return error.exit_code
    except process.Interrupted as interrupt:
        return interrupt.code
    except KeyboardInterrupt:
        print(f"tools/{tool}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - this was not installed, so the version was not checked
        sys.exit(f"tools: Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}")
    sys.exit(main())
