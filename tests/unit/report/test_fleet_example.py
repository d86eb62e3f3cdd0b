"""examples/fleet: the playbook runs on machines that are this one, with trees in the place of /sys."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.fakesys import FakeSys
from tests.unit.report.test_page import whole

CHECKOUT = Path(__file__).parents[3]
PLAYBOOK = shutil.which("ansible-playbook")


@pytest.mark.skipif(PLAYBOOK is None, reason="ansible-core is not installed")
def test_the_playbook_makes_the_page(tmp_path: Path) -> None:
    hosts = {}
    for name in ("east", "west"):
        fake = FakeSys(tmp_path / name)
        disk = fake.pci("0000:00:03.0", "blk", group=4)
        if name == "west":
            fake.child(disk, "virtio1/block/vda", "block", {"dev": "254:0", "size": "2048"})
            fake.mountinfo(["25 1 254:0 / / rw,relatime - ext4 /dev/vda rw"])
        command = tmp_path / f"uvirtio-{name}"
        command.write_text(
            f'#!/bin/sh\nexec {sys.executable} -m uvirtio "$@" --root {fake.top}\n', encoding="utf-8"
        )
        command.chmod(0o755)
        devices = ["scripted:rng,silent" if name == "west" else "scripted:rng", "0000:00:03.0"]
        hosts[name] = {"uvirtio_devices": devices, "uvirtio_command": [str(command)]}
    inventory = tmp_path / "inventory.json"
    shared = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    # Ansible reads YAML, of which JSON is a part.
    inventory.write_text(
        json.dumps(
            {
                "virtio": {"hosts": hosts, "vars": shared},
                "ungrouped": {
                    "hosts": {"localhost": {**shared, "uvirtio_command": [sys.executable, "-m", "uvirtio"]}}
                },
            }
        ),
        encoding="utf-8",
    )
    results = tmp_path / "results"
    done = subprocess.run(
        [
            str(PLAYBOOK),
            "-i",
            str(inventory),
            str(CHECKOUT / "examples/fleet/fleet.yml"),
            "-e",
            json.dumps({"uvirtio_results": str(results), "uvirtio_timeout": 1}),
        ],
        env=os.environ | {"PYTHONPATH": str(CHECKOUT), "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    record = [json.loads(line) for line in (results / "west.json").read_text(encoding="utf-8").splitlines()]
    # The disk is mounted there: plan says so, and nothing is bound, diagnosed or restored.
    # Ansible chooses the order of the devices, where hosts share some.
    assert {(one.get("device"), one["document"]["command"]) for one in record} == {
        (None, "doctor"),
        ("scripted:rng,silent", "diag"),
        ("0000:00:03.0", "plan"),
    }
    commands = [json.loads(line)["document"]["command"] for line in (results / "east.json").open(encoding="utf-8")]
    assert sorted(commands) == ["bind", "diag", "doctor", "plan", "restore"]
    read = whole((results / "fleet.html").read_text(encoding="utf-8"))
    assert "rng, data path" in read.one("differences").text
    assert "blk, plan" in read.one("differences").text


def test_the_playbook_names_files_that_are_there() -> None:
    folder = CHECKOUT / "examples/fleet"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    for file in folder.glob("*.yml"):
        assert f"`{file.name}`" in readme
    assert "include_tasks: device.yml" in (folder / "fleet.yml").read_text(encoding="utf-8")
