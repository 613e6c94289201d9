"""One training stage from resolved settings: loader, optimiser, resume, loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from selfdet.data.images import Quarantine
from selfdet.data.loader import TrainingDataset, training_batches
from selfdet.errors import UserError
from selfdet.methods.base import Method
from selfdet.training.checkpoint import load_checkpoint
from selfdet.training.log import Reporter
from selfdet.training.loop import Plan, fit
from selfdet.training.rundir import RunDir
from selfdet.training.runtime import Runtime
from selfdet.training.schedule import Schedule


@dataclass(frozen=True)
class Recipe:
    """Every number of a stage, resolved: nothing here is a default any more.

    `batch_size` counts the images of one optimiser step over all processes and micro-batches.
    """

    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    schedule: Literal["cosine", "step", "constant"]
    warmup_steps: int
    seed: int
    workers: int
    accumulate: int = 1
    clip: float = 0.0
    log_every: int = 10
    save_every: int = 100
    evaluate_every: int = 0
    max_minutes: float = 0.0


def default_workers(device_type: str) -> int:
    """Loader processes per training process: on a CPU they compete with training for the same cores."""
    cores = os.cpu_count() or 1
    return max(1, cores // 2) if device_type == "cpu" else min(8, cores)


def saved_state(run: RunDir, runtime: Runtime) -> dict[str, Any] | None:
    """The checkpoint of a run to continue, or None where it has none yet; metrics are cut back to it.

    Raises: UserError when the checkpoint can't be read or was made with another number of threads.
    """
    state = load_checkpoint(run.last) if run.last.is_file() else None
    if state is not None and runtime.fabric.device.type == "cpu" and state["threads"] != runtime.threads:
        raise UserError(
            f"{run.last} was made with {state['threads']} threads, this process has {runtime.threads}; "
            "sums would differ in their last bits",
            f"Add --threads {state['threads']}",
        )
    if runtime.fabric.is_global_zero:
        run.truncate_to(state["progress"]["step"] if state is not None else -1)
    return state


def run_stage(
    method: Method,
    groups: Sequence[dict[str, Any]],
    dataset: TrainingDataset,
    collate: Callable[[list[Any]], Any],
    recipe: Recipe,
    run: RunDir,
    runtime: Runtime,
    reporter: Reporter,
    *,
    state: Mapping[str, Any] | None = None,
    evaluate: Callable[[int], Mapping[str, Any]] | None = None,
) -> None:
    """Train `method` with SGD (momentum 0.9) over parameter `groups`, from the start or from a checkpoint `state`.

    Raises: UserError (unreadable images above 5 %, a loss that is not finite), Interrupted after saving.
    Source: DenseCL and AlignDet both train with SGD, momentum 0.9.
    """
    fabric = runtime.fabric
    share, left = divmod(recipe.batch_size, fabric.world_size * recipe.accumulate)
    if left or not share:
        raise UserError(
            f"--batch-size {recipe.batch_size} can't be shared by {fabric.world_size} processes × "
            f"{recipe.accumulate} micro-batches",
            f"Use a multiple of {fabric.world_size * recipe.accumulate}",
        )
    optimizer = torch.optim.SGD(list(groups), lr=recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
    schedule = Schedule(recipe.lr, recipe.steps, recipe.warmup_steps, recipe.schedule)
    plan = Plan(
        total_steps=recipe.steps,
        images_per_step=recipe.batch_size,
        log_every=recipe.log_every,
        save_every=recipe.save_every,
        evaluate_every=recipe.evaluate_every,
        accumulate=recipe.accumulate,
        clip=recipe.clip,
        max_seconds=60.0 * recipe.max_minutes,
    )
    quarantine = Quarantine(len(dataset))
    if state is not None:
        quarantine.restore(state["quarantine"])
    start = state["progress"]["step"] if state is not None else 0
    batches = training_batches(
        dataset,
        batch_size=share,
        seed=recipe.seed,
        start_step=start * recipe.accumulate,
        total_steps=recipe.steps * recipe.accumulate,
        workers=recipe.workers,
        collate=collate,
        rank=fabric.global_rank,
        world=fabric.world_size,
        quarantine=quarantine,
    )
    fit(
        method,
        batches,
        optimizer,
        schedule,
        plan,
        run,
        fabric,
        reporter,
        resume_from=state,
        evaluate=evaluate,
        extra_state=lambda: {"quarantine": quarantine.reasons},
    )
    if quarantine.paths:
        listed = ", ".join(str(path) for path in list(quarantine.paths)[:5])
        reporter.line(f"{len(quarantine.paths)} unreadable images were replaced by others: {listed}")
