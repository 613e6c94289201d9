"""One training stage from resolved settings: run directory, loader, optimiser, resume, loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from selfdet.data.images import Quarantine
from selfdet.data.loader import TrainingDataset, training_batches
from selfdet.errors import UserError
from selfdet.methods.base import Method
from selfdet.training import memory
from selfdet.training.checkpoint import newest_whole
from selfdet.training.defaults import Default, Policy
from selfdet.training.log import Reporter, plural
from selfdet.training.loggers import LoggerName, followed
from selfdet.training.loop import fit
from selfdet.training.optimizers import build_optimizer
from selfdet.training.recipe import Recipe
from selfdet.training.rundir import RunDir
from selfdet.training.runtime import Runtime
from selfdet.training.schedule import Schedule
from selfdet.training.snapshots import Snapshots
from selfdet.training.stop import Interrupted
from selfdet.training.transfer import TransferReport

Product = Literal["backbone", "detector", "segmenter"]
RESUME = "the same command with --resume continues it"


def default_workers(device_type: str) -> int:
    """Loader processes per training process: on a CPU they compete with training for the same cores."""
    cores = os.cpu_count() or 1
    return max(1, cores // 2) if device_type == "cpu" else min(8, cores)


@dataclass(frozen=True)
class Weights:
    """The product's tensors in a method's state dict, by their `prefix`, and what they say of themselves."""

    prefix: str
    note: dict[str, Any]


@dataclass
class Stage:
    """A run directory opened for training, and what is needed to train in it.

    `product` names the weights that the stage writes last of all: a run that has them is finished. `state` is the
    checkpoint to go on from, None for a new run.
    """

    run: RunDir
    recipe: Recipe
    runtime: Runtime
    reporter: Reporter
    product: Product
    finished: bool = False
    state: dict[str, Any] | None = None
    loggers: Sequence[LoggerName] = ()

    @property
    def product_file(self) -> Path:
        """Where the weights are written."""
        return self.run.product(self.product)

    @property
    def start(self) -> int:
        """Optimiser steps already done."""
        return 0 if self.state is None else int(self.state["progress"]["step"])

    def introduce(self, *lines: str, report: TransferReport | None, choices: Mapping[str, Default | Policy]) -> None:
        """Say what is about to be done: the verb's own lines, what was reused, and each choice with its reason."""
        for line in lines:
            self.reporter.line(line)
        if report is not None:
            self.reporter.line(report.table())
        for name, choice in choices.items():
            self.reporter.line(choice.line(name))
        for line in self.recipe.remarks():
            self.reporter.line(line)
        if self.start:
            self.reporter.line(f"continuing after step {self.start} of {self.recipe.steps}")

    def expect_memory(self, network: nn.Module, each: float | None) -> None:
        """Say what memory training `network` will take, a pass of which keeps `each` bytes of an image, if known."""
        if each is None:
            return
        kept = each * self.recipe.images_per_pass(self.runtime.fabric.world_size)
        expected = memory.estimate(network, kept, self.runtime.fabric.device)
        if expected is not None:
            self.reporter.line(f"peak memory: about {expected / 1e9:.1f} GB, besides loader processes")

    def summary(self) -> dict[str, Any]:
        """What the verb returns: the folder, the weights, and the last of each figure."""
        last: dict[str, Any] = {}
        for row in self.run.read_metrics():
            last |= row
        return {"out": str(self.run.path), self.product: str(self.product_file), "finished": True, **last}

    def unfinished(self, step: int) -> dict[str, Any]:
        """What the verb returns when the time was up after `step` steps."""
        return {"out": str(self.run.path), "finished": False, "step": step}

    def train(
        self,
        method: Method,
        groups: Sequence[dict[str, Any]],
        dataset: TrainingDataset[Any],
        collate: Callable[[list[Any]], Any],
        weights: Weights,
        evaluate: Callable[[int], Mapping[str, Any]] | None = None,
        snapshots: Snapshots | None = None,
    ) -> int:
        """Train parameter `groups` with the recipe's optimiser; returns the steps done, fewer when the time was up.

        `weights` says where in `method` the product is, so that a checkpoint can be used like a weights file.
        Raises: UserError (unreadable images above 5 %, a loss that is not finite), Interrupted after saving.
        """
        quarantine = Quarantine(len(dataset))
        if self.state is not None:
            quarantine.restore(self.state["quarantine"])
        try:
            with followed(self.run, self.loggers):
                step = self._fit(method, groups, dataset, collate, weights, evaluate, snapshots, quarantine)
        except (UserError, Interrupted) as error:
            with suppress(UserError):  # the disk may be full
                self.reporter.record(str(error))  # the command line shows it
            raise
        if (most := memory.peak(self.runtime.fabric.device)) is not None:
            self.reporter.line(f"peak memory was {most / 1e9:.1f} GB")
        if quarantine.paths:
            bad, total = plural(len(quarantine), "unreadable image"), len(dataset)
            listed = ", ".join(quarantine.paths[:5]) + (", …" if len(quarantine) > 5 else "")
            self.reporter.line(f"{bad} of {total} replaced by others: {listed}")
        if step < self.recipe.steps:
            self.reporter.line(f"stopped by --max-time at step {step} of {self.recipe.steps}, saved; {RESUME}")
        return step

    def _fit(
        self,
        method: Method,
        groups: Sequence[dict[str, Any]],
        dataset: TrainingDataset[Any],
        collate: Callable[[list[Any]], Any],
        weights: Weights,
        evaluate: Callable[[int], Mapping[str, Any]] | None,
        snapshots: Snapshots | None,
        quarantine: Quarantine,
    ) -> int:
        recipe, fabric = self.recipe, self.runtime.fabric
        batches = training_batches(
            dataset,
            batch_size=recipe.batch_size // fabric.world_size,
            seed=recipe.seed,
            start_step=self.start,
            total_steps=recipe.steps,
            workers=recipe.workers,
            collate=MicroBatches(collate, recipe.images_per_pass(fabric.world_size)),
            rank=fabric.global_rank,
            world=fabric.world_size,
            quarantine=quarantine,
        )
        optimizer = build_optimizer(recipe.optimizer, groups, recipe.lr, recipe.weight_decay)
        with closing(cast(Generator[Any, None, None], batches)):  # its workers end with it
            return fit(
                method,
                batches,
                optimizer,
                Schedule(recipe.lr, recipe.steps, recipe.warmup_steps, recipe.schedule, drops=recipe.lr_steps),
                recipe,
                self.run,
                fabric,
                self.reporter,
                resume_from=self.state,
                evaluate=evaluate,
                extra_state=lambda: {"quarantine": quarantine.reasons, "product": asdict(weights)},
                keep=lambda step: None if snapshots is None else snapshots.keep(self.run, step),
            )


@dataclass(frozen=True)
class MicroBatches:
    """Collates the images of one optimiser step into batches of `size`: the step's images don't depend on it."""

    collate: Callable[[list[Any]], Any]
    size: int

    def __call__(self, items: list[Any]) -> list[Any]:
        return [self.collate(items[first : first + self.size]) for first in range(0, len(items), self.size)]


def open_stage(
    out: str,
    config: Mapping[str, Any],
    recipe: Recipe,
    runtime: Runtime,
    product: Product,
    *,
    resume: bool,
    whole: str | None = None,
    loggers: Sequence[LoggerName] | None = None,
) -> Stage:
    """Make or open the run directory of a stage; everything the user may have got wrong is to be checked before.

    `whole`: the folder of the run that `out` is one stage of; None where it is all of it. `loggers` get its figures.

    A finished run is left as it is, to the byte. That of an interrupted one has its metrics cut back to the checkpoint:
    the last one, or where that is damaged the one before, which is said.
    Raises: UserError when the folder is not empty or not this run's, or when the checkpoint can't be read or was made
    with another number of threads.
    """
    recipe.images_per_pass(runtime.fabric.world_size)
    config = {**config, "loggers": list(loggers or ()) or None}
    # The others wait until the first has made the folder: to them it is no longer a new one.
    if runtime.first:
        run = RunDir.open(out, config, resume=resume, whole=whole)
    runtime.fabric.barrier()
    if not runtime.first:
        run = RunDir(out, writes=False, whole=whole)
    if run.product(product).is_file():
        reporter = Reporter(quiet=not runtime.first)
        reporter.line(f"{run.path} is finished ({recipe.steps} steps): nothing to do")
        return Stage(run, recipe, runtime, reporter, product, finished=True)
    state, fault = newest_whole(run.last, run.previous) if run.last.is_file() or run.previous.is_file() else (None, "")
    if state is not None and runtime.fabric.device.type == "cpu" and state["threads"] != runtime.threads:
        raise UserError(
            f"{run.last} was made with --threads {state['threads']}, this process has {runtime.threads}: "
            "sums would differ in their last bits",
            f"Add --threads {state['threads']}",
        )
    runtime.fabric.barrier()  # nobody writes before all have read
    if fault and runtime.first:
        os.replace(run.previous, run.last)  # else the next checkpoint would keep the damaged one in its place
    run.truncate_to(-1 if state is None else state["progress"]["step"])
    reporter = Reporter(run.log_file, quiet=not runtime.first)
    for line in (fault, _elsewhere(state, runtime)):
        if line:
            reporter.line(line)
    return Stage(run, recipe, runtime, reporter, product, state=state, loggers=loggers or ())


def _elsewhere(state: Mapping[str, Any] | None, runtime: Runtime) -> str:
    """A line about a run that goes on on another kind of device than it was saved on."""
    before, now = None if state is None else state.get("device"), runtime.fabric.device.type
    if before in (None, now):
        return ""
    return f"so far on {before}, from here on {now}: the same batches, but sums that differ in their last bits"
