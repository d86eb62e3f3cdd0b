"""``python -m uvirtio``: the command ``uvirtio``."""

import sys

from uvirtio.cli import main

if __name__ == "__main__":
    sys.exit(main())
