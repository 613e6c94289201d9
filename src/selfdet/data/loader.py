"""Endless, exactly resumable training batches: every random choice is a pure function of (seed, epoch, index)."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from selfdet.data.images import Quarantine, UnreadableImage
from selfdet.errors import UserError

Item = TypeVar("Item", covariant=True)
Batch = TypeVar("Batch")

# Separate random streams for separate purposes, so that no two of them can ever coincide.
_ORDER, _SAMPLE, _REPLACEMENT = 0, 1, 2
# A replacement that cannot be read is itself replaced; so many in a row means the images are at fault, not chance.
_TRIES = 20


class TrainingDataset(Protocol[Item]):
    """What `training_batches` draws from: `load` must depend on its arguments (and the dataset's own seed) alone."""

    def __len__(self) -> int: ...

    def load(self, index: int, epoch: int) -> Item:
        """The item `index` as augmented in `epoch`. Raises: UnreadableImage, which is replaced and counted."""
        ...


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random generator of one item of one epoch; the same in every process, whatever was drawn before."""
    return _rng(seed, epoch, _SAMPLE, index)


def steps_per_epoch(length: int, batch_size: int, world: int = 1) -> int:
    """Optimiser steps in an epoch: full batches only, the remainder left out (another one each epoch); at least 1."""
    return max(1, length // (batch_size * world))


def training_batches(
    dataset: TrainingDataset[Any],
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    total_steps: int,
    workers: int,
    collate: Callable[[list[Any]], Batch],
    rank: int = 0,
    world: int = 1,
    quarantine: Quarantine | None = None,
) -> Iterator[tuple[int, int, Batch]]:
    """Yield (step, epoch, batch) for the steps `start_step` … `total_steps - 1` of this rank.

    The stream is the same for any number of `workers` and begins anywhere at no cost, so a resumed run sees exactly
    the batches it would have seen. An item that raises `UnreadableImage` is replaced by a draw that depends on
    (seed, epoch, index) alone and is entered in `quarantine`. `dataset` and `collate` must be picklable when
    `workers` > 0.

    With fewer items than a global batch an epoch is one full step: the items repeat, each time newly augmented
    (`load` is then given the number of the pass over the items, of which an epoch has several).

    Raises: UserError from the dataset; when more than the quarantine's limit is unreadable; when a worker dies.
    """
    if len(dataset) == 0 or batch_size < 1 or not 0 <= rank < world:
        raise ValueError(f"cannot draw batches of {batch_size} from {len(dataset)} items on rank {rank} of {world}")
    if start_step >= total_steps:
        return
    quarantine = quarantine if quarantine is not None else Quarantine(len(dataset))
    plan = _Plan(len(dataset), batch_size, seed, rank, world)
    loader: DataLoader[Any] = DataLoader(
        _Guarded(dataset, seed),
        batch_sampler=_Steps(plan, start_step, total_steps),
        collate_fn=_Collate(collate),
        num_workers=workers,
        worker_init_fn=_start_worker if workers else None,
        multiprocessing_context=_context() if workers else None,
    )
    per_epoch = steps_per_epoch(len(dataset), batch_size, world)
    for step, loaded in zip(range(start_step, total_steps), _received(loader)):
        if loaded.error is not None:
            raise UserError(*loaded.error)
        for path, reason in loaded.unreadable:
            quarantine.add(path, reason)
        quarantine.check()
        yield step, step // per_epoch, loaded.batch


def _rng(seed: int, epoch: int, *purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed % 2**64, epoch), spawn_key=purpose)))


@lru_cache(maxsize=4)
def _order(length: int, seed: int, epoch: int) -> np.ndarray:
    return _rng(seed, epoch, _ORDER).permutation(length)


@dataclass(frozen=True)
class _Plan:
    """Which items make up which step: a pure function, so that any step can be asked for first."""

    length: int
    batch_size: int
    seed: int
    rank: int
    world: int

    def step(self, step: int) -> list[tuple[int, int]]:
        """The (epoch, index) pairs of this rank's batch. The global batch does not depend on how ranks share it."""
        per_epoch = steps_per_epoch(self.length, self.batch_size, self.world)
        size = self.batch_size * self.world
        passes = -(-size // self.length)  # 1 unless the items are fewer than a global batch
        epoch, position = divmod(step, per_epoch)
        first = position * size + self.rank * self.batch_size
        pairs = []
        for place in range(first, first + self.batch_size):
            number = epoch * passes + place // self.length
            pairs.append((number, int(_order(self.length, self.seed, number)[place % self.length])))
        return pairs


@dataclass(frozen=True)
class _Steps:
    """The batch sampler of all remaining steps: one loader and one set of workers for the whole run."""

    plan: _Plan
    start: int
    stop: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return (self.plan.step(step) for step in range(self.start, self.stop))

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass
class _Loaded:
    """What a worker hands over: an item or a batch, the files it could not read, or the user's mistake it met.

    A mistake travels as a value: an exception raised in a worker would reach the user as a long traceback.
    """

    batch: Any = None
    unreadable: tuple[tuple[str, str], ...] = ()
    error: tuple[str, str] | None = None


class _Guarded(Dataset[_Loaded]):
    """`dataset` with unreadable items replaced and mistakes caught."""

    def __init__(self, dataset: TrainingDataset[Any], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> _Loaded:
        epoch, index = key
        unreadable: list[tuple[str, str]] = []
        others = _rng(self.seed, epoch, _REPLACEMENT, index)
        try:
            for _ in range(_TRIES):
                try:
                    return _Loaded(self.dataset.load(index, epoch), tuple(unreadable))
                except UnreadableImage as error:
                    unreadable.append((error.path, error.reason))
                    index = int(others.integers(len(self.dataset)))
        except UserError as error:
            return _Loaded(error=(error.message, error.hint))
        names = ", ".join(dict.fromkeys(path for path, _ in unreadable[:3]))
        message = f"{_TRIES} images drawn one after another could not be read, the first of them {names}"
        return _Loaded(error=(message, "Check that the folder holds intact image files"))


class _Collate:
    """Joins the items of a step, and the reports of what could not be read."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[_Loaded]) -> _Loaded:
        for item in items:
            if item.error is not None:
                return item
        unreadable = tuple(report for item in items for report in item.unreadable)
        return _Loaded(self.collate([item.batch for item in items]), unreadable)


def _context() -> Any:
    """How workers are started: from a clean server process on Linux, afresh elsewhere; never by plain fork.

    A fork copies a process whose OpenMP pool, CUDA context and locks belong to threads that the copy does not have:
    it may hang at the first of them. The server is started before any of that exists in it, and imports torch once.
    """
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["selfdet.data.loader", "torchvision.transforms.v2"])
    return context


def _start_worker(worker: int) -> None:
    # One thread a worker: the cores are shared out by the number of workers, and results don't depend on it.
    torch.set_num_threads(1)
    # Ctrl-C and a cluster's SIGTERM go to the whole group: the main process saves, then ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # SIGTERM is obeyed from the main process only. That process is watched as well: torch watches the one that
    # forked the worker, but that is the fork server, which lives as long as its workers do, so that without this
    # the workers of a killed run would stay for ever.
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)


def _received(loader: DataLoader[Any]) -> Iterator[_Loaded]:
    try:
        yield from loader
    except RuntimeError as error:
        # torch's words for a worker that ended without an exception of its own.
        if "DataLoader worker" not in str(error) or "Caught" in str(error):
            raise
        raise UserError(
            "a data worker process ended unexpectedly, most often for lack of memory or of room in /dev/shm",
            "Use fewer --workers (0 works everywhere); in a Python script put the call under if __name__ == '__main__'",
        ) from error
