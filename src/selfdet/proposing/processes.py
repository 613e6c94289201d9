"""Many images in several processes; an image that ends its process costs the others nothing."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from multiprocessing import TimeoutError as NoAnswer
from typing import Any, Protocol, TypeVar

from joblib import Parallel, cpu_count, delayed
from joblib.externals.loky.process_executor import BrokenProcessPool
from joblib.parallel import get_active_backend

from selfdet.errors import UserError

# Starting a process takes as long as so many images.
IMAGES_A_PROCESS = 24
# Tasks a process that are handed out at once where a backend of joblib's gives answers only all together.
CHUNK = 16
# After so many times an image's time limit without an answer, and so many seconds (a worker imports torch first), a
# cluster's tasks under way are taken as lost. joblib's dask and ray backends say nothing of a worker that died on a
# task, or that can't even read it: they wait forever.
PATIENCE, LEAST_PATIENCE = 5, 60.0


class Answer(Protocol):
    """What came of one image."""

    @property
    def image_id(self) -> int: ...


A = TypeVar("A", bound=Answer, covariant=True)


class Task(Protocol[A]):
    """What is to be done with one image, as it is sent to a process; `timeout` seconds are its limit, 0 for none."""

    @property
    def image_id(self) -> int: ...

    @property
    def timeout(self) -> float: ...

    def run(self) -> A:
        """Do it; what goes wrong is part of the answer."""
        ...

    def crashed(self, reason: str) -> A:
        """The answer if the process ended without one."""
        ...


def default_processes(images: int) -> int:
    """As many as there are cores, and no more than is worth the start."""
    return max(1, min(cpu_count(), images // IMAGES_A_PROCESS))


def find_all(tasks: Sequence[Task[A]], processes: int | None, stopped: Callable[[], bool]) -> Iterator[A]:
    """The answers to `tasks` in the order in which they are ready, until `stopped` says so.

    processes: how many; chosen if None. Where the caller has chosen another of joblib's backends
    (`with joblib.parallel_config(backend="dask")`, or ray), its processes are used.

    Raises: UserError when such a backend gives no answer twice in a row.
    """
    backend, jobs = get_active_backend()
    local = type(backend).__name__ == "LokyBackend"
    processes = processes or jobs or (default_processes(len(tasks)) if local else -1)
    if processes == 1 and local:
        for task in tasks:
            if stopped():
                return
            yield task.run()
        return
    limit = max((task.timeout for task in tasks), default=0)
    patience = None if local or not limit else max(LEAST_PATIENCE, PATIENCE * limit)
    left = {task.image_id: task for task in tasks}
    silent = 0  # rounds, one after the other, without an answer
    while left and not stopped():
        begun: list[Task[A]] = []
        before = len(left)
        answers = _together if backend.supports_return_generator else _in_chunks
        try:
            for found in answers(list(left.values()), begun, processes, patience):
                del left[found.image_id]
                yield found
                if stopped():
                    return
        except (BrokenProcessPool, NoAnswer, TimeoutError) as error:
            if stopped():  # the processes were told as well
                return
            silent = silent + 1 if not isinstance(error, BrokenProcessPool) and len(left) == before else 0
            if silent > 1:
                raise UserError(
                    f"the processes of joblib's {type(backend).__name__} gave no answer",
                    "Each needs selfdet, and the images under the same paths",
                ) from error
            # One of those under way ended its process: alone in one of this machine, each shows whether it was it.
            for task in begun:
                if task.image_id in left and not stopped():
                    del left[task.image_id]
                    yield _alone(task)


def _together(tasks: Sequence[Task[A]], begun: list[Task[A]], processes: int, patience: float | None) -> Iterator[A]:
    parallel = Parallel(processes, timeout=patience, return_as="generator_unordered", batch_size=1)
    yield from parallel(_calls(tasks, begun))


def _in_chunks(tasks: Sequence[Task[A]], begun: list[Task[A]], processes: int, patience: float | None) -> Iterator[A]:
    size = CHUNK * (processes if processes > 0 else cpu_count())
    for start in range(0, len(tasks), size):
        yield from Parallel(processes, timeout=patience)(_calls(tasks[start : start + size], begun))


def _alone(task: Task[A]) -> A:
    try:
        found: A = Parallel(2, backend="loky")(_calls([task], []))[0]
    except BrokenProcessPool:
        return task.crashed("its process ended without an answer")
    return found


def _calls(tasks: Iterable[Task[A]], begun: list[Task[A]]) -> Iterator[Any]:
    """What joblib is to call, noting in `begun` what it has taken."""
    for task in tasks:
        begun.append(task)
        yield delayed(_in_process)(task, os.getpid())


def _in_process(task: Task[A], main: int) -> A:
    if os.getpid() != main:
        _settle_in()
    return task.run()


@cache
def _settle_in() -> None:
    """Once in each process, before its first image."""
    # joblib's processes collect garbage every second, which takes a fifth of a second for all the objects that torch
    # brings along: none of them will ever be garbage.
    gc.freeze()
    if threading.current_thread() is threading.main_thread():
        # Ctrl-C goes to the whole group: the main process stops, then ends the others.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
