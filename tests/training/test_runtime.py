"""Devices, precision and threads are what was asked for, or an error that says what there is."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from selfdet.errors import UserError
from selfdet.methods.base import Method
from selfdet.training import runtime
from selfdet.training.runtime import choose_precision, start_runtime


def test_auto_takes_bf16_where_the_hardware_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(runtime, "cpu_has_bf16", lambda has=has: has)
        assert choose_precision("auto", "cpu") == precision
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert choose_precision("auto", "cuda") == ("bf16" if has else "fp16")
    assert choose_precision("auto", "mps") == "fp32"
    assert choose_precision("bf16", "cpu") == "bf16"


def test_what_the_machine_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.raises(UserError, match=r"--devices 3: this machine has 2 \(cpu\)"):
        start_runtime(devices=3)
    with pytest.raises(UserError, match="--devices many is not a number"):
        start_runtime(devices="many")
    with pytest.raises(UserError, match="--nodes 0"):
        start_runtime(nodes=0)
    with pytest.raises(UserError, match="--threads -1"):
        start_runtime(threads=-1)
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        start_runtime(precision="fp16")
    with pytest.raises(UserError, match="--precision fp8 is unknown"):
        choose_precision("fp8", "cpu")


TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "6", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "3"}


@pytest.mark.parametrize(("name", "given"), [("torchrun", TORCHRUN), ("srun", SRUN)])
def test_what_a_launcher_has_started_is_taken_or_refused(
    name: str, given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    assert runtime.launched() == runtime.Launched(name, 3, 2)
    with pytest.raises(UserError, match=f"{name} has started 3 × 2 processes .* this command is for 2 × 2"):
        start_runtime(devices=2, nodes=2)
    monkeypatch.setenv("SLURM_NTASKS", "7")
    monkeypatch.setenv("WORLD_SIZE", "7")
    with pytest.raises(UserError, match="has started 7 processes on 2 machines"):
        runtime.launched()


def test_processes_that_srun_starts_may_work_alone_and_those_of_torchrun_may_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key, value in SRUN.items():
        monkeypatch.setenv(key, value)
    threads = torch.get_num_threads()
    assert start_runtime(devices=1, precision="fp32", threads=threads).fabric.world_size == 1
    for key, value in TORCHRUN.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match="torchrun has started"):
        start_runtime(devices=1)


def test_one_task_of_slurm_and_a_batch_script_start_their_processes_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "8")  # a batch script, without srun
    assert runtime.launched() is None
    for key, value in {**SRUN, "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}.items():
        monkeypatch.setenv(key, value)
    assert runtime.launched() is None
    threads = torch.get_num_threads()
    assert start_runtime(precision="fp32", threads=threads).fabric.world_size == 1


def test_srun_must_say_how_many_processes_a_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in SRUN.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(UserError, match="--nodes=2 --ntasks-per-node=3 instead of --ntasks"):
        runtime.launched()


def test_threads_are_fixed_and_said() -> None:
    before = torch.get_num_threads()
    try:
        started = start_runtime(threads=1, precision="fp32")
        assert torch.get_num_threads() == started.threads == 1
        assert started.describe == f"{started.fabric.device.type}, fp32, 1 thread, torch {torch.__version__}"
    finally:
        torch.set_num_threads(before)


class Looks(Method):
    """Keeps what reaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """The loss, and what was given and computed on the way."""
        self.given = batch
        self.computed = self.linear(batch[0])
        return {"loss": self.computed.sum()}


def test_mixed_precision_rounds_what_is_computed_and_never_what_is_given() -> None:
    fabric = start_runtime(precision="bf16", threads=torch.get_num_threads()).fabric
    method = Looks()
    wrapped, _ = fabric.setup(method, torch.optim.SGD(method.parameters(), 0.1))
    box = torch.tensor([[333.3, 1.7]])
    loss = wrapped([box])["loss"]
    assert method.given[0].dtype == torch.float32
    assert method.given[0].equal(box)  # in bfloat16 it would be 334
    assert method.computed.dtype == torch.bfloat16
    assert loss.dtype == torch.float32


def test_the_engine_says_nothing_of_its_own(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        start_runtime(precision="bf16")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_modules_are_placed_channels_last() -> None:
    started = start_runtime(precision="fp32")
    conv = started.place(nn.Conv2d(3, 4, 3))
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
