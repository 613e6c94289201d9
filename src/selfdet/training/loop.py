"""The only training loop: pre-training, fine-tuning and everything after run through `fit`."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from selfdet.data.workers import DeadWorker
from selfdet.errors import UserError
from selfdet.methods.base import Method
from selfdet.training.checkpoint import random_state, restore_random_state, save_checkpoint
from selfdet.training.clock import Clock
from selfdet.training.log import Reporter, duration
from selfdet.training.recipe import Recipe
from selfdet.training.rundir import RunDir
from selfdet.training.schedule import Schedule
from selfdet.training.stop import TIME, Interrupted, Stop

JUDGES = ("AP", "mIoU")  # scores that say which checkpoint is the best


@dataclass
class Progress:
    """What the loop carries from step to step and into the checkpoint.

    `sums` of each loss over the `summed` steps since the last row of metrics.jsonl; `best` score so far.
    """

    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    summed: int = 0
    best: float | None = None

    def add(self, losses: Mapping[str, float]) -> None:
        """Count the losses of a finished step."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.summed += 1
        self.step += 1

    def take_means(self) -> dict[str, float]:
        """Mean losses since the last call."""
        means = {name: value / self.summed for name, value in self.sums.items()}
        self.sums, self.summed = {}, 0
        return means


def fit(
    method: Method,
    batches: Iterable[tuple[int, int, Sequence[Any]]],
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    recipe: Recipe,
    run: RunDir,
    fabric: Fabric,
    reporter: Reporter,
    *,
    resume_from: Mapping[str, Any] | None = None,
    evaluate: Callable[[int], Mapping[str, Any]] | None = None,
    extra_state: Callable[[], Mapping[str, Any]] = dict,
    keep: Callable[[int], None] = lambda step: None,
) -> int:
    """Train `method` until `recipe.steps`, or the time limit, and return the steps done; saved either way.

    `batches` yields (step, epoch, micro-batches of the step). `evaluate(step)` returns figures for metrics.jsonl;
    where they hold one of `JUDGES`, the best is kept in best.pt. `extra_state()` joins each checkpoint. `keep(step)` is
    called at the start and after each step, before a checkpoint counts it: every continuation has what it writes.
    Raises: UserError when a loss or gradient is not finite, when the disk is full, or when a process that loads data
    has died, after saving where it trains alone; Interrupted after saving when a signal says stop.
    """
    wrapped, optimizer = fabric.setup(method, optimizer)
    progress = Progress()
    if resume_from is not None:
        method.load_state_dict(resume_from["method"])
        optimizer.load_state_dict(resume_from["optimizer"])
        progress = Progress(**resume_from["progress"])
        restore_random_state(resume_from["random"])
    evaluate_every = recipe.evaluate_every if evaluate is not None else 0
    clock = Clock(recipe.steps, recipe.batch_size, progress.step, evaluate_every)

    def save(path: Path) -> None:
        if fabric.is_global_zero:
            state = {"method": method.state_dict(), "optimizer": optimizer.state_dict(), "random": random_state()}
            about = {"progress": vars(progress), "threads": torch.get_num_threads(), "device": fabric.device.type}
            save_checkpoint(path, {**state, **about, **extra_state()}, run.previous if path == run.last else None)

    def assess() -> None:
        if evaluate is None:
            return
        with clock.paused():
            scores = evaluate(progress.step)
        run.append_metrics({"step": progress.step, **scores})
        found = next((scores[name] for name in JUDGES if scores.get(name) is not None), None)
        if found is not None and (progress.best is None or found > progress.best):
            progress.best = found
            save(run.best)

    expected = 0.0
    stream = iter(batches)
    with Stop(60 * recipe.max_time) as stop, reporter.steps(recipe.steps, progress.step) as display:
        if progress.step == 0:
            keep(0)
            if evaluate_every:
                assess()
        while progress.step < recipe.steps:
            try:
                with clock.waiting():
                    _, epoch, parts = next(stream)
            except DeadWorker as error:
                if fabric.world_size > 1:  # the others are in the middle of the step
                    raise
                save(run.last)
                hint = f"{error.hint}. Step {progress.step} is saved: the same command with --resume continues it"
                raise UserError(error.message, hint) from None
            if fabric.global_rank:
                torch.manual_seed(_seed_of(recipe.seed, progress.step, fabric.global_rank))
            rate = schedule(progress.step)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)
            losses = optimiser_step(wrapped, optimizer, parts, fabric, recipe.clip, progress.step + 1)
            method.after_step(progress.step, recipe.steps)
            progress.add(losses)

            step, done = progress.step, progress.step == recipe.steps
            display.advance(step)
            if clock.first_estimate(step) and not done:
                expected = clock.total() + clock.left(step)
                reporter.line(f"about {duration(clock.left(step))} for the {recipe.steps - step} steps to come")
            if done or step % recipe.log_every == 0:
                means = progress.take_means()
                run.append_metrics({"step": step, "epoch": epoch, "lr": rate, **means, **method.health()})
                speed, wait = clock.interval(step)
                run.append_timing(
                    {"step": step, "images_per_second": speed, "data_wait": wait, "seconds": clock.total()}
                )
                display.logged(step, epoch, {"loss": means["loss"], **means, "lr": rate}, speed, wait, clock.left(step))
            if evaluate_every and (done or step % evaluate_every == 0):
                assess()
            keep(step)
            asked = _agreed(stop.asked, fabric)
            if done or asked or step % recipe.save_every == 0:
                save(run.last)
            if asked > 0 and not done:
                raise Interrupted(f"stopped by {signal.Signals(asked).name}", step, asked)
            if asked:
                break
    if progress.step == recipe.steps and run.writes:
        run.previous.unlink(missing_ok=True)  # a finished run keeps one
    if progress.step == recipe.steps and expected:
        reporter.line(f"took {duration(clock.total())}; {duration(expected)} was expected")
    return progress.step


def optimiser_step(
    wrapped: Any, optimizer: Any, parts: Sequence[Any], fabric: Fabric, clip: float, step: int
) -> dict[str, float]:
    """One optimiser step on the mean gradient of micro-batches of equal size, over all processes; returns the mean of
    each loss.

    A batch has `.to(device)`, or is a list that the method moves itself. `step` is its number, for the error.
    Raises: UserError, with the weights untouched, when a loss or the gradient is not finite.
    """
    optimizer.zero_grad(set_to_none=True)
    names: list[str] = []
    rows: list[Tensor] = []
    for number, part in enumerate(parts, start=1):
        part = part.to(fabric.device) if hasattr(part, "to") else part
        with fabric.no_backward_sync(wrapped, enabled=number < len(parts)):
            losses = wrapped(part)
            fabric.backward(losses["loss"] / len(parts))
        names = list(losses)
        rows.append(torch.stack([value.detach() for value in losses.values()]))
    norm = _gradient_norm(wrapped, optimizer, fabric, clip)
    mean = torch.stack(rows).mean(0)
    if fabric.world_size > 1:
        mean = fabric.all_reduce(mean, reduce_op="mean")  # type: ignore[assignment]
    # One transfer for all figures: each would make the host wait for the device.
    *figures, means, norms = torch.stack([*rows, mean, norm.to(mean).expand_as(mean)]).tolist()
    for part, row in zip(parts, figures):
        bad = [name for name, value in zip(names, row) if not math.isfinite(value)]
        if bad:
            raise _not_finite(f"loss ({', '.join(bad)})", step, part)
    if not all(map(math.isfinite, means)):
        raise UserError(f"the loss is not finite at step {step} in another process", "Its own error names the images")
    if not math.isfinite(norms[0]):
        raise _not_finite("gradient", step, parts[0])
    optimizer.step()
    return dict(zip(names, means))


def _gradient_norm(wrapped: Any, optimizer: Any, fabric: Fabric, clip: float) -> Tensor:
    """The norm of the gradient, which is clipped to `clip` unless that is 0."""
    if clip:
        norm = fabric.clip_gradients(wrapped, optimizer, max_norm=clip, error_if_nonfinite=False)
        assert norm is not None
    else:
        norm = torch.nn.utils.get_total_norm([p.grad for p in wrapped.parameters() if p.grad is not None])
    # A gradient scaler (fp16) meets infinities on purpose and leaves out the step itself.
    return torch.zeros_like(norm) if getattr(fabric.strategy.precision, "scaler", None) is not None else norm


def _seed_of(seed: int, step: int, rank: int) -> int:
    """What a process but the first draws from in a step, as the checkpoint holds the first one's generators only."""
    return int(np.random.SeedSequence((seed % 2**64, step, rank)).generate_state(1, np.uint64)[0])


def _not_finite(what: str, step: int, batch: Any) -> UserError:
    paths = getattr(batch, "paths", None) or [getattr(sample, "path", "?") for sample in batch]
    return UserError(
        f"the {what} is not finite at step {step}; the images of the batch begin with {', '.join(map(str, paths[:3]))}",
        "Lower --lr or use --precision fp32, in a new run; last.pt is from before this step",
    )


def _agreed(asked: int, fabric: Fabric) -> int:
    """What any process was asked: they must all stop after the same step."""
    if fabric.world_size == 1:
        return asked
    # The number of a signal, and one more place for a time limit.
    wishes = torch.tensor([max(asked, 0), int(asked == TIME)], device=fabric.device)
    number, time = fabric.all_reduce(wishes, reduce_op="max").tolist()  # type: ignore[union-attr]
    return int(number) or (TIME if time else 0)
