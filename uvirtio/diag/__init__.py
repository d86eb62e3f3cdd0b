"""Bring-up in steps: does the device work, and if not, which step fails?"""

from uvirtio.diag.beside import Beside
from uvirtio.diag.bringup import STEPS, diagnose, diagnose_function
from uvirtio.diag.report import Report, Step

__all__ = ["STEPS", "Beside", "Report", "Step", "diagnose", "diagnose_function"]
