"""Training batches that resume exactly: every random choice is a pure function of (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from selfdet.data.images import Quarantine, UnreadableImage
from selfdet.data.shards import fetch_ahead
from selfdet.data.workers import DeadWorker, script_hidden, start_method, start_worker
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
    (seed, epoch, index) alone and is entered in `quarantine`. When `workers` > 0, `dataset` and `collate` must be
    picklable, and a script that defines them itself needs its `if __name__ == "__main__":`.

    With fewer items than a global batch an epoch is one full step: the items repeat, each time newly augmented
    (`load` is then given the number of the pass over the items, of which an epoch has several).

    Raises: UserError from the dataset; when more than the quarantine's limit is unreadable; DeadWorker.
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
        worker_init_fn=start_worker if workers else None,
        multiprocessing_context=start_method() if workers else None,
        # Its own, unused one: else each new iterator would draw from torch's global generator, and a resumed run
        # draws once more than an uninterrupted one.
        generator=torch.Generator(),
    )
    per_epoch = steps_per_epoch(len(dataset), batch_size, world)
    own_script = "__main__" in (type(dataset).__module__, collate.__module__)
    for step, loaded in zip(range(start_step, total_steps), _received(loader, own_script)):
        for path, reason in loaded.unreadable:
            quarantine.add(path, reason)
        quarantine.check()
        if loaded.error is not None:
            raise UserError(*loaded.error)
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

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[_Loaded]:
        """The items of a step; torch asks for them together where it can."""
        path_of = getattr(self.dataset, "path_of", None)
        if path_of is not None:  # of what is read over a network all is asked for before one is waited for
            with suppress(UserError, OSError):  # `load` meets it again, and says of which item it is
                fetch_ahead(path_of(index) for _, index in keys)
        return [self[key] for key in keys]

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
        return _Loaded(None, tuple(unreadable), (message, "Check that the folder holds intact image files"))


class _Collate:
    """Joins the items of a step, and the reports of what could not be read."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[_Loaded]) -> _Loaded:
        unreadable = tuple(report for item in items for report in item.unreadable)
        for item in items:
            if item.error is not None:
                return _Loaded(None, unreadable, item.error)
        return _Loaded(self.collate([item.batch for item in items]), unreadable)


def _received(loader: DataLoader[Any], own_script: bool) -> Iterator[_Loaded]:
    try:
        with nullcontext() if own_script else script_hidden():
            batches = iter(loader)
        yield from batches
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
        # What a worker itself has raised says so.
        if not loader.num_workers or "Caught" in str(error):
            raise
        # torch's words for a worker that ended without an exception of its own. One that ends while the batch that it
        # has announced is being fetched from it is met as a connection that breaks, or as a socket that is gone.
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise DeadWorker from error
