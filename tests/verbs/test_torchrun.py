"""`torchrun` starts a run as `--devices` does; shares of a batch may be processes or micro-batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfdet.training.rundir import RunDir
from tiny_runs import FINETUNE, PRETRAIN, flags

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two processors"),
]
SELFDET = ["-m", "selfdet"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "selfdet"]


def run(launcher: list[str], *words: str, **environment: str) -> dict[str, Any]:
    """Run a command of selfdet to its good end; its answer."""
    line = [sys.executable, *launcher, *words, "--json"]
    done = subprocess.run(
        line, capture_output=True, text=True, check=False, timeout=500, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)  # of the first process only
    return answer


def same_weights(first: Path, second: Path) -> bool:
    one, other = load_file(first), load_file(second)
    return one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [row for row in RunDir(folder).read_metrics() if "loss" in row]


@pytest.fixture(scope="module")
def words(scenes: Path) -> list[str]:
    """Two steps of pre-training: SimCLR, whose every figure is of all processes."""
    settings = {**PRETRAIN, "method": "simclr", "steps": 2, "log_every": 1, "images": scenes / "images"}
    del settings["queue_length"]
    return ["pretrain", *flags(settings)]


def test_torchrun_trains_what_devices_trains(words: list[str], tmp_path: Path) -> None:
    for name, launcher, more in (("torchrun", TORCHRUN, []), ("devices", SELFDET, ["--devices", "2"])):
        answer = run(launcher, *words, *more, "--out", str(tmp_path / name))
        assert (answer["finished"], answer["step"]) == (True, 2)
    assert RunDir(tmp_path / "torchrun").read_config()["processes"] == 2
    assert metrics(tmp_path / "torchrun") == metrics(tmp_path / "devices")
    assert same_weights(tmp_path / "torchrun/backbone.safetensors", tmp_path / "devices/backbone.safetensors")


def test_one_task_of_slurm_starts_its_processes(words: list[str], tmp_path: Path) -> None:
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}
    task = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    answer = run(SELFDET, *words, "--devices", "2", "--out", str(tmp_path / "run"), **slurm, **task)
    assert answer["finished"]
    assert RunDir(tmp_path / "run").read_config()["processes"] == 2


def test_two_tasks_of_slurm_make_one_run(words: list[str], tmp_path: Path) -> None:
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "1"}
    slurm |= {"SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1"}
    line = [sys.executable, *SELFDET, *words, "--out", str(tmp_path / "run"), "--json"]
    tasks = [
        subprocess.Popen(
            line,
            env={**os.environ, **slurm, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [task.communicate(timeout=500)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0]
    assert json.loads(said[0])["finished"]
    assert said[1] == ""
    assert RunDir(tmp_path / "run").read_config()["processes"] == 2


def test_processes_and_micro_batches_share_a_batch_alike(scenes: Path, tmp_path: Path) -> None:
    # FCOS's losses are of each share by itself, and frozen batch norm knows no shares.
    settings = {**FINETUNE, "batch_norm": "frozen", "steps": 2, "log_every": 1, "data": scenes / "train.json"}
    for name, more in (("processes", ["--devices", "2"]), ("micro", ["--devices", "1", "--accumulate", "2"])):
        answer = run(SELFDET, "finetune", *flags(settings), *more, "--out", str(tmp_path / name))
        assert answer["step"] == 2
    one, other = (load_file(tmp_path / name / "detector.safetensors") for name in ("processes", "micro"))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-6, rtol=1e-6, msg=name)
    for first, second in zip(metrics(tmp_path / "processes"), metrics(tmp_path / "micro"), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-6)


def test_two_processes_evaluate_as_one(scenes: Path, finetuned: Path, tmp_path: Path) -> None:
    words = ["evaluate", "--init", str(finetuned), "--data", str(scenes / "train.json"), "--batch-size", "2"]
    words += ["--precision", "fp32", "--threads", "1"]
    alone = run(SELFDET, *words, "--out", str(tmp_path / "alone.json"))
    for name, launcher, more in (("torchrun", TORCHRUN, []), ("devices", SELFDET, ["--devices", "2"])):
        assert run(launcher, *words, *more, "--out", str(tmp_path / f"{name}.json")) == alone
        assert (tmp_path / f"{name}.json").read_bytes() == (tmp_path / "alone.json").read_bytes()


def test_two_interrupted_processes_train_what_uninterrupted_ones_train(scenes: Path, tmp_path: Path) -> None:
    # An R-CNN draws the places that it learns from, in each process others.
    settings = {**FINETUNE, "detector": "faster_rcnn", "steps": 3, "log_every": 1, "data": scenes / "train.json"}
    del settings["head_convs"]
    words = ["finetune", *flags(settings), "--devices", "2", "--out"]
    assert run(SELFDET, *words, str(tmp_path / "whole"))["step"] == 3
    assert run(SELFDET, *words, str(tmp_path / "parts"), "--max-time", "1e-9")["step"] == 1
    assert run(SELFDET, *words, str(tmp_path / "parts"), "--resume")["step"] == 3
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert same_weights(tmp_path / "parts/detector.safetensors", tmp_path / "whole/detector.safetensors")
