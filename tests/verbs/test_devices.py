"""Several processes make one run: one folder, one answer, one stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfdet.training.rundir import RunDir
from tiny_runs import FINETUNE, PRETRAIN, WIDTHS, flags

pytestmark = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two processors")


def command(verb: str, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "selfdet", verb, "--devices", "2", "--json", *words]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.slow
def test_two_processes_pretrain_one_run(scenes: Path, tmp_path: Path) -> None:
    words = ["--images", str(scenes / "images"), "--out", str(tmp_path / "run"), *flags({**PRETRAIN, "accumulate": 2})]
    done = command("pretrain", *words)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["finished"], answer["step"]) == (True, 5)
    assert [row["step"] for row in RunDir(tmp_path / "run").read_metrics()] == [0, 2, 4, 5, 5]
    assert RunDir(tmp_path / "run").read_config()["processes"] == 2
    assert done.stderr.count("densecl on 15 images") == 1


@pytest.mark.slow
def test_two_processes_pretrain_a_whole_detector(scenes: Path, tmp_path: Path) -> None:
    stages = {"stages": ["proposals", "backbone", "detector"], **WIDTHS}
    settings = {**PRETRAIN, **stages, "images": scenes / "images", "out": tmp_path / "run", "steps": 3}
    done = command("pretrain", *flags(settings))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["finished"]
    assert {name: figures["step"] for name, figures in answer["stages"].items()} == {"backbone": 3, "detector": 3}
    assert done.stderr.count("AlignDet over fcos on 15 images") == 1
    again = command("pretrain", *flags(settings), "--resume")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == answer


@pytest.mark.slow
def test_two_processes_stop_after_the_same_step_and_go_on(scenes: Path, tmp_path: Path) -> None:
    settings = {**FINETUNE, "data": scenes / "train.json", "val_data": scenes / "val.json", "evaluate_every": 2}
    words = [*flags(settings), "--out", str(tmp_path / "run")]
    stopped = command("finetune", *words, "--max-time", "1e-9")
    assert stopped.returncode == 0, stopped.stderr
    assert json.loads(stopped.stdout) == {"out": str(tmp_path / "run"), "finished": False, "step": 1}
    done = command("finetune", *words, "--resume")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 5
    again = command("finetune", *words, "--resume")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == json.loads(done.stdout)


@pytest.mark.slow
def test_a_batch_that_two_processes_cannot_share_is_refused(scenes: Path, tmp_path: Path) -> None:
    words = ["--images", str(scenes / "images"), "--out", str(tmp_path / "run"), *flags({**PRETRAIN, "batch_size": 3})]
    done = command("pretrain", *words)
    assert done.returncode == 2
    assert "--batch-size 3 can't be shared by 2 processes × 1 micro-batch" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_end_with_the_first(scenes: Path, tmp_path: Path) -> None:
    # The others wait for the boxes that the first is to find. That this returns at all says that none is left: it
    # would hold the pipes open.
    (tmp_path / "boxes.json").write_text("no JSON")
    words = ["--images", str(scenes / "images"), "--out", str(tmp_path / "run"), *flags({**PRETRAIN, **WIDTHS})]
    done = command("pretrain", *words, "--stages", "detector", "--boxes", str(tmp_path / "boxes.json"))
    assert done.returncode == 2
    assert "is not JSON" in done.stderr
