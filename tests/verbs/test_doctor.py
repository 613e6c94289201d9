"""The doctor tries what a run needs, says what to do, and gives lines to paste that tell nothing of the user."""

from __future__ import annotations

import json
import os
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from selfdet import cli
from selfdet.verbs import doctor as module
from selfdet.verbs import doctor_checks
from selfdet.verbs.doctor_checks import Check

Capture = pytest.CaptureFixture[str]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the start of a process where that is not what is asked."""
    monkeypatch.setattr(doctor_checks, "worker_check", lambda: Check("loader process", "ok", "starts and answers"))


def test_a_quick_look_is_json_with_versions_and_lines_to_paste(no_worker: None, capfd: Capture, tmp_path: Path) -> None:
    assert cli.main(["doctor", "--quick", "--json"]) == 0
    stdout, stderr = capfd.readouterr()
    checks = {check["name"]: check for check in json.loads(stdout)["checks"]}
    assert checks["torch"]["words"] == torch.__version__.split("+")[0]
    assert {"system", "selfdet", "cpu", "threads", "disk", "writing", "loader process"} <= checks.keys()
    assert "fp32 works" in checks["cpu"]["words"]
    pasted = stderr.split(module.PASTE)[1]
    assert "torchvision's operators" in pasted
    assert str(Path.cwd()) not in pasted
    assert str(Path.home()) + "/" not in pasted


def test_a_loader_process_is_really_started() -> None:
    assert doctor_checks.worker_check().status == "ok"


def test_a_fault_is_exit_code_two_with_what_to_do(
    no_worker: None, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_checks, "_version", lambda name: None if name == "timm" else "9999.0")
    assert cli.main(["doctor", "--quick"]) == 2
    assert "timm: absent, needs >=" in (line := capfd.readouterr().err.splitlines()[-1])
    assert "Pip install 'timm>=" in line


def test_little_of_anything_is_a_warning_and_no_fault(
    no_worker: None, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(64 * 2**20, 0, doctor_checks.GIB))
    monkeypatch.setattr(doctor_checks, "free_memory", lambda: 2**30)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    assert cli.main(["doctor", "--quick"]) == 0
    told = capfd.readouterr().err
    assert "warning  memory: 1.0 GiB free → use a smaller --batch-size" in told
    assert "warning  disk: 1.0 GiB free" in told
    assert "warning  threads: 1000 of torch" in told
    if os.path.isdir("/dev/shm"):
        assert "warning  shared memory: 64 MiB → start the container with --shm-size=8g" in told


def test_a_folder_that_cannot_be_written_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    assert doctor_checks.writing_check(tmp_path).line.startswith(
        "warning  writing: the current folder can't be written"
    )


def test_wrong_numbers_of_a_device_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    true = doctor_checks._compute
    monkeypatch.setattr(
        doctor_checks, "_compute", lambda images, w: true(images, w) * (3 if images.dtype == torch.bfloat16 else 1)
    )
    assert doctor_checks.try_precision("cpu", torch.bfloat16) == "gives wrong numbers"
    assert doctor_checks.try_precision("cpu", torch.float32) == ""


def test_a_stage_that_breaks_is_reported_and_raised_without_paths(
    no_worker: None, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**told: object) -> None:
        raise ZeroDivisionError(f"in {told['out']} of {Path.home()}/secret")

    monkeypatch.setattr(module, "proposals", broken)
    assert cli.main(["doctor"]) == 1
    told = capfd.readouterr().err.split(module.PASTE)[1].split("Traceback")[0]
    assert "fault    proposals: ZeroDivisionError: in FOLDER/boxes.json of ~/secret" in told
    assert "in broken" in told


@pytest.mark.slow
def test_every_stage_takes_two_steps(capfd: Capture) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    checks = {check["name"]: check["status"] for check in json.loads(capfd.readouterr().out)["checks"]}
    assert all(checks[name] == "ok" for name in ("proposals", "backbone stage", "detector stage", "fine-tuning"))
