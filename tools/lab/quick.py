"""What ``tools/test --quick`` runs of the floors: not what takes long, and of many parameters the first sets.

The times are those of one run on two cores with both busy. A file or test that is renamed has to be renamed here,
too: tests/unit/tools/test_lab_choice.py holds this list against what there is.
"""

from __future__ import annotations

from lab import CHECKOUT

ENVIRONMENT = {"UVIRTIO_EXAMPLES": "20"}
"""So many examples of hypothesis, where a test asks for no number of its own."""
SETS = {"unit": 3, "qemu": 1}
"""How many sets of its parameters a test is run with, by floor."""
RACE_SECONDS = "0.5"
"""For each race of the wake-ups."""
FUZZ = 50_000
"""Executions in all; a whole run has many times as many."""
FIRST = ("qemu", "mypy")
"""Steps that begin before all others: the longest, or the lanes do not end together."""
UNIT_PARTS = 4
"""Steps that the units are dealt out to: two lanes end together, however long each file takes."""

_UNIT = {
    "test_pytest_plugin.py": "a pytest of its own in each test",
    "test_pytest_plugin_vm.py": "likewise",
    "report/test_browser.py": "a browser",
    "tools/test_soak.py": "processes that have to settle",
    "tools/test_mutate.py": "a pytest that is forked for each mutant",
    "binding/test_deaths.py": "nineteen machines, killed after each change",
    "memory/test_fence.py": "seconds of races; those of the wake-ups are there",
    "host/test_pages.py::test_what_maps_memory_has_the_same_tests_with_a_larger_page": "nine files once more",
    "diag/test_causes.py::test_the_page_is_what_diag_says": "every fault is diagnosed for the page",
    "trace/test_trace.py::test_any_value_of_any_line_may_be_wrong": "a thousand replays",
    "virtqueue/test_rings.py::test_soak_of_more_than_65536_requests": "the whole range of an index",
    "virtqueue/test_split.py::test_interrupts_that_are_off_stay_off_for_65535_entries": "likewise",
    "cli/test_cli_frame.py::test_garbage_never_gives_a_traceback": "eighty examples of whole commands",
    "tools/test_lab_choice.py::test_the_examples_of_the_help_can_be_run": "pytest collects each of them",
    "test_errors.py::test_a_misuse_raises_an_error_of_ours": "every call of the public surface",
    "binding/test_udev_rules.py::test_the_helper_reads_the_deny_list_as_the_package_does": "a shell for each line",
    "tools/test_conformance.py::test_the_projects_markers_are_sound_and_the_totals_come_last": "lint has it, too",
    "cli/test_top_cli.py::test_the_screen_is_left_in_order": "a terminal for each way out",
    "fuzz/test_fuzz.py::test_each_kind_of_finding": "waits for time-outs",
    "drivers/test_net_ends.py::test_an_end_that_does_not_read_costs_frames_and_no_time": "seconds of traffic",
}
_QEMU = {
    "test_conform.py": "a battery of rows on a device",
    "test_stopped.py": "waits for time-outs",
    "test_hosts_whims.py": "a hundred changes",
    "test_models.py": "hypothesis' machines",
    "test_examples.py": "a process for each",
    "test_docs.py": "likewise",
    "test_left_open.py": "a pytest of its own",
    "test_conform_packed.py": "likewise",
    "test_vtd.py": "an IOMMU in each machine",
    "test_net_cli.py": "whole commands, and a machine for each",
    "test_input_cli.py": "likewise",
    "test_scsi.py::test_the_commands": "likewise",
    "test_backend_qemu.py::test_a_stopped_qemu_is_a_timeout_and_goes_on_after": "waits for time-outs",
    "test_balloon.py::test_a_migration_is_spared_the_pages_that_are_hinted": "two machines",
    "test_vhost_user.py::test_a_daemon_that_is_stopped": "waits for time-outs",
    "test_backend_qemu.py::test_a_qemu_that_says_nothing_is_ended": "waits for time-outs",
    "test_backend_qemu.py::test_a_stopped_qemu_is_killed_at_close": "likewise",
    "test_deadlines.py::test_a_stopped_qemu_costs_a_call_no_more_than_its_time_out": "likewise",
}
LEFT_OUT = {
    **{f"tests/unit/{name}": why for name, why in _UNIT.items()},
    **{f"tests/qemu/{name}": why for name, why in _QEMU.items()},
}
"""Files and tests, below the checkout, and why they take long."""


def options(floor: str) -> list[str]:
    """The arguments of pytest that leave out what is left out of a floor."""
    words = [f"--sets={SETS[floor]}"]
    for name in LEFT_OUT:
        if name.startswith(f"tests/{floor}/"):
            # A node id is relative to the checkout; a path is taken as relative to where pytest runs.
            words.append(f"--deselect={name}" if "::" in name else f"--ignore={CHECKOUT / name}")
    return words


def told() -> list[str]:
    """What is left out, for people."""
    counts = ", ".join(f"{number} of tests/{floor}" for floor, number in SETS.items())
    return [
        *LEFT_OUT,
        f"the parameters of a test after the first sets ({counts})",
        f"examples of hypothesis after {ENVIRONMENT['UVIRTIO_EXAMPLES']}",
        f"races after {RACE_SECONDS} s",
        f"fuzz after {FUZZ:,} executions",
        "bench",
        "docs",
    ]
