"""Bring a device up step by step from a program: which step fails, and what was read in each.

    python examples/diagnose.py [ADDRESS]      default: qemu:virtio-blk-pci

The steps are those of ``uvirtio diag``. The trace is a line for each register access and kick.
"""

import sys
from collections import Counter

from uvirtio.diag import Step, diagnose


def main(address: str) -> int:
    accesses: Counter[str] = Counter()

    def trace(line: str) -> None:
        accesses[line.split("+")[0].split()[0]] += 1

    def tell(step: Step) -> None:
        print(f"{step.verdict:5} {step.name:20} {step.took_s * 1000:7.1f} ms  {step.detail}")
        if step.hint:
            print(f"{'':5} hint: {step.hint}")

    report = diagnose(address, on_step=tell, trace=trace)
    print(f"verdict: {report.verdict}; {sum(accesses.values())} accesses: {dict(accesses)}")
    return 1 if report.verdict == "fail" else 0


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:] or ["qemu:virtio-blk-pci"])))
