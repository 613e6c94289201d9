"""Many images in several processes; an image that ends its process costs the others nothing."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

from joblib import Parallel, cpu_count, delayed
from joblib.externals.loky.process_executor import BrokenProcessPool
from joblib.parallel import get_active_backend

from selfdet.proposing.finding import Found, Task, find_boxes

# Starting a process takes as long as so many images.
IMAGES_A_PROCESS = 24
# Tasks a process that are handed out at once where a backend of joblib's gives answers only all together.
CHUNK = 16


def default_processes(images: int) -> int:
    """As many as there are cores, and no more than is worth the start."""
    return max(1, min(cpu_count(), images // IMAGES_A_PROCESS))


def find_all(tasks: Sequence[Task], processes: int | None, stopped: Callable[[], bool]) -> Iterator[Found]:
    """The answers to `tasks` in the order in which they are ready, until `stopped` says so.

    processes: how many; chosen if None. Where the caller has chosen another of joblib's backends
    (`with joblib.parallel_config(backend="dask")`, or ray), its processes are used.
    """
    backend, jobs = get_active_backend()
    local = type(backend).__name__ == "LokyBackend"
    processes = processes or jobs or (default_processes(len(tasks)) if local else -1)
    if processes == 1 and local:
        for task in tasks:
            if stopped():
                return
            yield find_boxes(task)
        return
    left = {task.image.image_id: task for task in tasks}
    while left and not stopped():
        begun: list[Task] = []
        answers = _together if backend.supports_return_generator else _in_chunks
        try:
            for found in answers(list(left.values()), begun, processes):
                del left[found.image_id]
                yield found
                if stopped():
                    return
        except BrokenProcessPool:
            if stopped():  # the processes were told as well
                return
            # One of those under way ended its process: alone in one, each shows whether it was it.
            for task in begun:
                if task.image.image_id in left and not stopped():
                    del left[task.image.image_id]
                    yield _alone(task)


def _together(tasks: Sequence[Task], begun: list[Task], processes: int) -> Iterator[Found]:
    yield from Parallel(processes, return_as="generator_unordered", batch_size=1)(_calls(tasks, begun))


def _in_chunks(tasks: Sequence[Task], begun: list[Task], processes: int) -> Iterator[Found]:
    size = CHUNK * (processes if processes > 0 else cpu_count())
    for start in range(0, len(tasks), size):
        yield from Parallel(processes)(_calls(tasks[start : start + size], begun))


def _alone(task: Task) -> Found:
    try:
        found: Found = Parallel(2, backend="loky")(_calls([task], []))[0]
    except BrokenProcessPool:
        return Found(task.image.image_id, fault="crashed", reason="its process ended without an answer")
    return found


def _calls(tasks: Iterable[Task], begun: list[Task]) -> Iterator[Any]:
    """What joblib is to call, noting in `begun` what it has taken."""
    for task in tasks:
        begun.append(task)
        yield delayed(_in_process)(task, os.getpid())


def _in_process(task: Task, main: int) -> Found:
    if os.getpid() != main:
        _settle_in()
    return find_boxes(task)


@cache
def _settle_in() -> None:
    """Once in each process, before its first image."""
    # joblib's processes collect garbage every second, which takes a fifth of a second for all the objects that torch
    # brings along: none of them will ever be garbage.
    gc.freeze()
    if threading.current_thread() is threading.main_thread():
        # Ctrl-C goes to the whole group: the main process stops, then ends the others.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
