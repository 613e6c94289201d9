"""The only training loop: pre-training, fine-tuning and everything after run through `fit`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from selfdet.errors import UserError
from selfdet.methods.base import Method
from selfdet.training.checkpoint import random_state, restore_random_state, save_checkpoint
from selfdet.training.clock import Clock
from selfdet.training.log import Reporter, duration
from selfdet.training.rundir import RunDir
from selfdet.training.schedule import Schedule
from selfdet.training.stop import Interrupted, Stop


@dataclass
class Plan:
    """How long a run is and how often it speaks; all counts are optimiser steps.

    `images_per_step` counts the images of all processes. `clip` bounds the gradient norm (0: off).
    `max_seconds` ends the run early, saved (0: off).
    """

    total_steps: int
    images_per_step: int
    log_every: int = 10
    save_every: int = 100
    evaluate_every: int = 0
    accumulate: int = 1
    clip: float = 0.0
    max_seconds: float = 0.0


@dataclass
class Progress:
    """What the loop carries from step to step and into the checkpoint."""

    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    summed: int = 0
    best: float | None = None

    def add(self, losses: Mapping[str, Tensor]) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.summed += 1

    def means(self) -> dict[str, float]:
        means = {name: value / max(1, self.summed) for name, value in self.sums.items()}
        self.sums, self.summed = {}, 0
        return means


def fit(
    method: Method,
    batches: Iterable[tuple[int, int, Any]],
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    plan: Plan,
    run: RunDir,
    fabric: Fabric,
    reporter: Reporter,
    *,
    resume_from: Mapping[str, Any] | None = None,
    evaluate: Callable[[int], Mapping[str, float]] | None = None,
    extra_state: Callable[[], Mapping[str, Any]] = dict,
) -> int:
    """Train `method` on `batches` of (micro-step, epoch, batch) until `plan.total_steps`; returns the steps done.

    `evaluate(step)` returns figures for metrics.jsonl; where it returns `"AP"`, the best is kept in best.pt.
    `extra_state()` joins each checkpoint. A batch has `.to(device)`, or is a list the method moves itself.
    Raises: UserError when a loss is not finite; Interrupted after saving when the run is asked to stop.
    """
    wrapped, optimizer = fabric.setup(method, optimizer)
    progress = Progress()
    if resume_from is not None:
        method.load_state_dict(resume_from["method"])
        optimizer.load_state_dict(resume_from["optimizer"])
        restore_random_state(resume_from["random"])
        progress = Progress(**resume_from["progress"])

    def save(path: Any = run.last) -> None:
        if fabric.is_global_zero:
            state = {"method": method.state_dict(), "optimizer": optimizer.state_dict(), "random": random_state()}
            save_checkpoint(
                path, {**state, "progress": vars(progress), "threads": torch.get_num_threads(), **extra_state()}
            )

    def log(step: int, figures: Mapping[str, float]) -> None:
        if fabric.is_global_zero:
            run.append_metrics({"step": step, **figures})

    if evaluate is not None and progress.step == 0 and plan.evaluate_every:
        log(0, evaluate(0))
    clock = Clock(plan.total_steps, plan.images_per_step, progress.step)
    with Stop(plan.max_seconds) as stop, reporter.steps(plan.total_steps, progress.step) as display:
        clock.waiting()
        for micro, epoch, batch in batches:
            batch = batch.to(fabric.device) if hasattr(batch, "to") else batch
            clock.computing()
            last = (micro + 1) % plan.accumulate == 0
            for group in optimizer.param_groups:
                group["lr"] = schedule(progress.step) * group.get("lr_scale", 1.0)
            with fabric.no_backward_sync(wrapped, enabled=not last):
                losses = wrapped(batch)
                _check_finite(losses, progress.step, batch)
                fabric.backward(losses["loss"] / plan.accumulate)
            progress.add({name: value.detach() for name, value in losses.items()})
            if not last:
                continue
            if plan.clip:
                fabric.clip_gradients(wrapped, optimizer, max_norm=plan.clip, error_if_nonfinite=False)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            method.after_step(progress.step, plan.total_steps)
            progress.step += 1
            done = progress.step == plan.total_steps
            display.advance(progress.step)
            if clock.first_estimate(progress.step):
                reporter.line(
                    f"estimate: {duration(clock.left(progress.step))} for {plan.total_steps - progress.step} more steps"
                )
            if progress.step % plan.log_every == 0 or done:
                figures = {"epoch": epoch, "lr": schedule(progress.step - 1), **progress.means(), **method.health()}
                log(progress.step, figures)
                rate, wait = clock.interval(progress.step)
                if fabric.is_global_zero:
                    run.append_timing(
                        {"step": progress.step, "images_per_second": rate, "data_wait": wait, "seconds": clock.total()}
                    )
                display.logged(progress.step, epoch, figures, rate, wait, clock.left(progress.step))
            if evaluate is not None and plan.evaluate_every and (progress.step % plan.evaluate_every == 0 or done):
                with clock.paused():
                    scores = evaluate(progress.step)
                log(progress.step, scores)
                if scores.get("AP") is not None and scores["AP"] > (
                    progress.best if progress.best is not None else -1.0
                ):
                    progress.best = scores["AP"]
                    save(run.best)
            if done or stop.reason or progress.step % plan.save_every == 0:
                save()
            if stop.reason and not done:
                raise Interrupted(stop.reason, progress.step, stop.signal)
            clock.waiting()
    return progress.step


def _check_finite(losses: Mapping[str, Tensor], step: int, batch: Any) -> None:
    bad = [name for name, value in losses.items() if not bool(torch.isfinite(value).all())]
    if not bad:
        return
    paths = getattr(batch, "paths", None) or [getattr(sample, "path", "?") for sample in batch]
    names = ", ".join(str(path) for path in paths[:3])
    raise UserError(
        f"the loss ({', '.join(bad)}) is not finite at step {step}; the batch begins with {names}",
        "Lower --lr or use --precision fp32; the last checkpoint before this step is kept",
    )
