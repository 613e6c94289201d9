"""Devices, precision and processes, through lightning-fabric."""

from __future__ import annotations

import inspect
import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning_fabric.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from selfdet.errors import UserError

MIXED: dict[str, Literal["bf16-mixed", "16-mixed"]] = {"bf16": "bf16-mixed", "fp16": "16-mixed"}
PRECISIONS = (*MIXED, "fp32")

Module = TypeVar("Module", bound=nn.Module)


class Autocast(MixedPrecision):
    """Mixed precision for what the network computes, and nothing else.

    The library's own also rounds every floating-point tensor of the batch on its way in: boxes and affines in bfloat16
    are up to two pixels off at 500.
    """

    def convert_input(self, data: Any) -> Any:
        """The batch as it is."""
        return data


@dataclass(frozen=True)
class Runtime:
    """Where and how a run computes: `fabric` launched, `precision` as its short name, `threads` per process."""

    fabric: Fabric
    precision: str
    threads: int

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.fabric.is_global_zero

    @property
    def mixed(self) -> bool:
        """Whether the network computes in fewer bits than float32."""
        return self.precision != "fp32"

    @property
    def describe(self) -> str:
        """One line for the log."""
        kind = self.fabric.device.type
        name = torch.cuda.get_device_name(self.fabric.device) if kind == "cuda" else kind
        count = self.fabric.world_size
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{f'{count} × ' if count > 1 else ''}{name}, {self.precision}, {threads}, torch {torch.__version__}"

    def place(self, module: Module) -> Module:
        """The module on its device, in the memory format that convolutions are fastest in.

        Training and evaluation must agree on the format: sums of another order differ in their last bits.
        """
        module = module.to(self.fabric.device)
        if self.fabric.device.type in ("cpu", "cuda"):
            module = module.to(memory_format=torch.channels_last)
        return module


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 natively; elsewhere it is emulated and slower than float32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, probe, bool)()) for probe in probes)


def choose_precision(asked: str, device: str) -> str:
    """`auto` resolved for a device type: bf16 where the hardware has it, else fp16 on a GPU and fp32 on a CPU.

    Raises: UserError for an unknown name.
    """
    if asked != "auto":
        if asked not in PRECISIONS:
            raise UserError(f"--precision {asked} is unknown", f"Use auto, {', '.join(PRECISIONS)}")
        if asked == "fp16" and device == "cpu":
            raise UserError("--precision fp16 needs a GPU", "Use bf16 or fp32 on a CPU")
        return asked
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device == "cpu":
        return "bf16" if cpu_has_bf16() else "fp32"
    return "fp32"


@dataclass(frozen=True)
class Launched:
    """Processes that somebody else has started: `devices` on each of `nodes` machines, by a launcher of this `name`."""

    name: str
    devices: int
    nodes: int


def launched() -> Launched | None:
    """What torchrun or srun has started; None where this is the only process so far, as in a batch script of SLURM.

    Raises: UserError for processes that are not spread evenly over the machines.
    """
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        name, world, devices = "torchrun", int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = world // devices
    # A batch script sees the job's tasks as well, but only srun makes them, in a step.
    elif "SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        name, world = "srun", int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS", "1"))
        nodes = int(os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES", "1"))
        devices = world // nodes
        if world > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise UserError(
                f"srun has started {world} processes without being told how many on a machine",
                f"Give sbatch or srun --nodes={nodes} --ntasks-per-node={devices} instead of --ntasks",
            )
    else:
        return None
    if devices * nodes != world:
        raise UserError(
            f"{name} has started {world} processes on {nodes} machines, which is not as many on each",
            "Start the same number of processes on every machine",
        )
    return Launched(name, devices, nodes) if world > 1 else None


def start_runtime(*, devices: int | str = "auto", nodes: int = 1, precision: str = "auto", threads: int = 0) -> Runtime:
    """Choose the device, launch the processes and fix the thread count.

    `devices`: a number of processes on each of `nodes` machines, or `auto`: as many as torchrun or srun has started;
    else every GPU, one process on a CPU. `threads` 0 keeps torch's choice.
    Raises: UserError when the devices asked for are not there, or are not those that a launcher has started.
    """
    if torch.cuda.is_available():
        accelerator, found = "cuda", torch.cuda.device_count()
    elif torch.backends.mps.is_available():
        accelerator, found = "mps", 1
    else:
        accelerator, found = "cpu", os.cpu_count() or 1
    if nodes < 1:
        raise UserError(f"--nodes {nodes} is not a number of machines", "Use 1 or more")
    if threads < 0:
        raise UserError(f"--threads {threads} is not a number of threads", "Use 0 for torch's choice")
    given = launched()
    count, nodes = _placed(devices, nodes, 1 if accelerator == "cpu" else found, given)
    # Processes that are there already may share a processor; a GPU each needs for itself.
    if count < 1 or (count > found and (given is None or accelerator != "cpu")):
        raise UserError(f"--devices {count}: this machine has {found} ({accelerator})", f"Use 1 to {found}")
    chosen = choose_precision(precision, accelerator)
    several = count * nodes > 1
    # Two queues are 67 MB: broadcasting buffers at every step would cost more than the losses do.
    newer = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    unsynced = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    strategy = DDPStrategy(**unsynced) if several else "auto"  # type: ignore[arg-type]
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # what it would say, our first line says
    plugins: list[Any] = [_environment(given)] if several else []
    fabric = Fabric(
        accelerator=accelerator,
        devices=count,
        num_nodes=nodes,
        strategy=strategy,
        plugins=plugins + ([Autocast(MIXED[chosen], accelerator)] if chosen in MIXED else []),
    )
    if several:
        fabric.launch()
        if given is None and fabric.local_rank > 0:
            _end_with_the_first()
    if threads:  # after the launch, which shares the processors among the processes
        torch.set_num_threads(threads)
    return Runtime(fabric=fabric, precision=chosen, threads=torch.get_num_threads())


def _placed(asked: int | str, nodes: int, usual: int, given: Launched | None) -> tuple[int, int]:
    """The number of processes on a machine and of machines."""
    if asked == "auto":
        count = usual if given is None else given.devices
        nodes = given.nodes if given is not None and nodes == 1 else nodes
    else:
        try:
            count = int(asked)
        except ValueError:
            raise UserError(f"--devices {asked} is not a number", "Give a number of processes or auto") from None
    # What srun starts may work alone, side by side; torchrun is for processes that work together.
    alone = count * nodes == 1 and given is not None and given.name == "srun"
    if given is not None and (count, nodes) != (given.devices, given.nodes) and not alone:
        raise UserError(
            f"{given.name} has started {given.devices} × {given.nodes} processes (on a machine × machines), "
            f"and this command is for {count} × {nodes}",
            "Leave out --devices and --nodes, or start as many; a verb without these flags is started once",
        )
    return count, nodes


def _environment(given: Launched | None) -> ClusterEnvironment:
    """Named rather than found: in a batch script of SLURM processes are ours to start, which nothing else knows."""
    if given is None:
        return LightningEnvironment()
    return TorchElasticEnvironment() if given.name == "torchrun" else SLURMEnvironment()


def _end_with_the_first() -> None:
    """Let a process that the first one has started not outlive it: it would wait for it, and keep its GPU."""
    first = os.getppid()

    def watch() -> None:
        while os.getppid() == first:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-the-first", daemon=True).start()
