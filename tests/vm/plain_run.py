"""What a plain run of tools/test leaves out in the lab VM, for the sake of its time; ``tools/test --all`` has it.

On an emulated CPU each of these tests takes a second or more. Linux 6.12 is asked for all but what takes
longest and is shown by a shorter test, too. Linux 6.1 is asked for one of each kind: what differs between the
kernels is what they offer: VFIO's containers, groups, resets and interrupts; binding, uevents, huge pages,
pagemap, /dev/mem. What a driver makes of its device's queues is the same code by the same calls on both, and
floor 2 has it on every machine of QEMU's. tools/test with a PATH, --kernel or --machine runs everything on
both, as --all does.

machines.toml says which machines the older kernel does not boot at all (more_kernels): of uio_pci_generic the
older kernel drives a device with huge pages on the machine vfio, and of /dev/mem the newer has all that it has.

A body of tests/bodies runs on several cells of a machine, which differ in their interrupts and in the addresses
that the device is told. What shows one of these runs on all cells, in every run: interrupts of that kind arrive,
the rings are where we put them, a device that is left is reset. What a driver makes of its queues is the same
code on each cell; in a plain run each such body has one or two of them, dealt out so that every cell runs some
(CELLS). Floor 2 has these bodies on cells of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

import pytest

REASON = "left to tools/test --all: the newer kernel has it"
LONG = "left to tools/test --all: it takes long"
CELL = "left to tools/test --all: another cell of this machine has it"

_OF_ANY_DEVICE = (
    r"test_any_device_the_interrupt_mode_is_the_one_asked_for",  # the kernel's ladder of interrupts
    r"test_any_device_the_rings_are_where_we_put_them",  # DMA at the addresses that it was told
    r"test_any_device_the_device_is_reset_when_it_is_left",  # what closing does
    r"test_\w+_by_interrupt",  # interrupts that arrive
)

OLDER: dict[str, tuple[str, ...]] = {
    "test_drivers": (
        *_OF_ANY_DEVICE,
        r"test_rng_as_many_bytes_as_asked_for",  # more than a page
        r"test_balloon_the_host_sees_the_balloon_grow_and_shrink",  # frames, which pagemap tells
        r"test_blk_what_is_written_is_on_the_disk",
        r"test_keyboard_keys_arrive_in_order",
    ),
    "test_balloon": (r"test_balloon_reports_reported_memory_is_taken",),
    "test_mem": (
        *_OF_ANY_DEVICE,
        r"test_mem_plug_unplug_and_state\[mem-(intx|iova)",
        r"test_mem_patterns_stay_while_others_are_unplugged\[mem-iova",
        r"test_mem_answers_come_by_interrupt",
        r"test_mem_the_hosts_memory_falls\[mem-intx",
        r"test_where_it_is_device_memory_it_is_refused",
        r"test_plugged_memory_is_real_memory",  # /dev/mem above what the kernel knows
        r"test_another_device_reads_into_plugged_memory",
        r"test_the_kernels_own_memory_is_not_for_us",
        r"test_without_the_boot_parameter",
    ),
    "test_mmio": (
        r"test_the_whole_page_is_taken_from_the_kernel",  # platform drivers, STRICT_DEVMEM
        r"test_a_sibling_that_is_bound_closes_the_page",
        r"test_a_killed_driver_leaves_a_device_that_is_reset",
        r"test_wrong_addresses_are_refused",
        r"test_any_device_the_rings_are_where_we_put_them",
        r"test_balloon_the_host_sees_the_balloon_grow_and_shrink",
        r"test_blk_what_is_written_is_on_the_disk",
        r"test_keyboard_keys_arrive_in_order",
    ),
    "test_commands": (
        # Binding: the kernel's own drivers let go, and work again.
        r"test_the_kernels_drivers_work_again",
        r"test_a_killed_process_loses_nothing",
        r"test_an_owner_can_drive_what_the_iommu_holds",
        # What is in use is found by what the kernel shows of mounts and routes.
        r"test_a_mounted_disk_is_not_taken",
        r"test_the_nic_in_use_is_not_taken",
        r"test_a_second_process_is_refused",
        r"test_a_signal_leaves_in_order\[(inflating-SIGTERM|holding-SIGINT)",
    ),
    "test_udev": (
        r"test_a_function_that_the_iommu_holds_is_the_groups",
        r"test_what_the_driver_negotiated_is_seen_when_it_binds",
        r"test_a_function_that_is_removed_takes_its_note_with_it",
        r"test_a_uio_node_has_a_name_and_never_a_group",
        r"test_udev_finds_nothing_wrong_with_the_rules",
    ),
    "test_watch": (
        # The kernel's uevents, and what it shows in sysfs; udev's part is the same udev.
        r"test_hot_plug_without_udev",
        r"test_hot_plug_by_the_kernels_socket",
        r"test_a_function_that_changes_hands",
        r"test_a_disk_that_grows",
        r"test_a_carrier_that_goes",
        r"test_uevents_that_are_not_read_in_time",
    ),
    "test_faults": (r"test_pinned_pages_are_neither",),  # khugepaged and swap
    "test_input_bridge": (r"test_a_clone_is_read_like_the_kernels_own_keyboard",),
}
"""Of these files the older kernel runs only these tests, by what their names begin with; all of the others."""

LEFT_OUT: dict[str, tuple[str, ...]] = {
    "test_commands": (
        # One cycle of binding and giving back, and what sysfs says then, is in tests of their own.
        r"test_twenty_cycles_leave_sysfs_as_it_was",
        # Each signal once, and each place.
        r"test_a_signal_leaves_in_order\[(inflating-SIGINT|inflating-SIGHUP|holding-SIGTERM)",
    ),
    # The machine vfio has it with its balloon.
    "test_balloon": (
        r"test_an_ordinary_user_may_not_know_frames_and_so_inflates_nothing\[balloon-iova",
        r"test_a_balloon_that_follows_has_given_up_its_rights",  # tests of input and mem look at rights, too
    ),
    "test_faults": (r"test_a_driver_that_is_frozen_goes_on_where_it_was",),
    "test_uio": (
        r"test_neither_driver_nor_guardian_has_any_right_left",
        r"test_kills_at_any_moment",  # one kill while it inflates, and the order then, is a test of its own
    ),
    "test_watch": (r"test_after_wait_udev_has_applied_its_rules",),  # what --wait waits for is in the units
    "test_mem_online": (r"test_one_run_finds_what_another_brought_online",),  # the others begin with a run's own
}
"""What neither kernel runs."""

_IOVA, _BYPASS, _PACKED = "rng-iova-msix-per-queue", "rng-msix-per-queue", "rng-packed-msix-per-queue"
_ONE_VECTOR, _LINE, _POLLED = "rng-shared-msix-shared", "rng-intx-intx", "rng-iova-polling"
_KEYS, _KEYS_LINE, _KEYS_POLLED = "keyboard-msix-per-queue", "keyboard-intx", "keyboard-polling"
_BALLOON, _BALLOON_POLLED = "balloon-intx", "balloon-polling"
_DISK, _DISK_IOVA = "disk-msix-per-queue", "disk-iova-msix-shared"
_MEM, _MEM_IOVA, _MEM_POLLED = "mem-intx", "mem-iova-intx", "mem-polling"

CELLS: dict[str, dict[str, tuple[str, ...]]] = {
    "vfio": {
        "test_any_device_the_device_sees_what_we_negotiated": (_IOVA, _BYPASS, _DISK),
        "test_any_device_packed_rings_and_in_order_are_taken_where_they_are_offered": (_PACKED, _DISK),
        "test_any_device_a_driver_can_be_started_again_on_the_same_device": (_BALLOON_POLLED, _KEYS_LINE),
        "test_any_device_closing_twice_is_once": (_ONE_VECTOR,),
        "test_rng_the_device_follows_our_indices": (_PACKED, _LINE),
        "test_rng_the_queue_can_be_reset_by_itself": (_IOVA, _PACKED),
        "test_rng_as_many_bytes_as_asked_for": (_POLLED, _ONE_VECTOR),
        "test_rng_two_reads_differ": (_BYPASS,),
        "test_rng_a_negative_count_is_refused_and_nothing_breaks": (_LINE,),
        "test_keyboard_keys_arrive_in_order": (_KEYS, _KEYS_POLLED),
        "test_keyboard_it_says_what_it_is": (_KEYS_LINE,),
        "test_keyboard_what_happens_at_once_is_one_frame": (_KEYS_POLLED,),
        "test_keyboard_the_device_takes_more_leds_than_its_queue_holds": (_KEYS_LINE,),
        "test_keyboard_the_event_queue_stays_stocked": (_KEYS_LINE,),
        "test_keyboard_nothing_pressed_is_no_error": (_KEYS,),
        "test_balloon_the_target_is_followed_both_ways": (_BALLOON,),
        "test_balloon_a_change_while_following_wakes_it": (_BALLOON_POLLED,),
        "test_balloon_leaving_gives_everything_back": (_BALLOON_POLLED,),
        "test_balloon_the_limit_is_kept": (_BALLOON,),
        "test_balloon_more_than_is_there_cannot_be_deflated": (_BALLOON_POLLED,),
        "test_balloon_pages_that_do_not_fill_a_buffer": (_BALLOON,),
        "test_balloon_the_inflate_queue_carries_one_buffer_for_256_pages": (_BALLOON_POLLED,),
        "test_blk_it_says_who_it_is": (_DISK_IOVA,),
        "test_blk_bursts": (_DISK,),
        "test_blk_many_at_once": (_DISK_IOVA,),
        "test_blk_leaving_waits_for_what_is_out": (_DISK_IOVA,),
        "test_blk_the_host_counts_the_flushes": (_DISK_IOVA,),
        "test_blk_the_host_makes_it_larger": (_DISK,),
        "test_blk_zeroes_and_discards": (_DISK,),
        "test_blk_nothing_is_written_without_consent": (_DISK,),
    },
    "mem": {
        "test_any_device_the_device_sees_what_we_negotiated": (_MEM, _MEM_IOVA),
        "test_any_device_packed_rings_and_in_order_are_taken_where_they_are_offered": (_MEM,),
        "test_any_device_a_driver_can_be_started_again_on_the_same_device": (_MEM_POLLED,),
        "test_any_device_closing_twice_is_once": (_MEM,),
        "test_mem_the_configuration_is_what_qemu_says": (_MEM_IOVA,),
        "test_mem_following_the_host": (f"sub-blocks-{_MEM_IOVA}", f"big-blocks-{_MEM_POLLED}"),
        "test_mem_the_host_is_told_by_an_event": (_MEM_IOVA, _MEM_POLLED),
        "test_mem_patterns_stay_while_others_are_unplugged": (_MEM, _MEM_IOVA),
        "test_mem_plugged_memory_outlives_the_driver_and_a_reset": (_MEM,),
        "test_mem_random_requests_against_a_model": (_MEM_IOVA,),
        "test_mem_hand_outs_and_the_host_wanting_them_back": (_MEM_POLLED,),
        "test_mem_leftovers_go_on_demand": (_MEM,),
    },
}
"""Of the bodies on a machine, by their names, those that run on some of its cells only, and on which."""


def left_out(item: pytest.Item) -> str:
    """Why this run leaves the test out; empty if it is to run."""
    if os.environ.get("UVIRTIO_LAB_WHOLE") == "1":
        return ""
    if any(matching(pattern, [item.name]) for pattern in LEFT_OUT.get(item.path.stem, ())):
        return LONG
    body, _, cell = item.name.removesuffix("]").partition("[")
    kept = CELLS.get(os.environ.get("UVIRTIO_LAB_MACHINE", ""), {}).get(body)
    if kept is not None and cell not in kept:
        return CELL
    patterns = OLDER.get(item.path.stem) if os.uname().release.startswith("6.1.") else None
    left = patterns is not None and not any(matching(pattern, [item.name]) for pattern in patterns)
    return REASON if left else ""


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that begin as the pattern says."""
    return [name for name in names if re.match(pattern, name)]
