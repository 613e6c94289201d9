"""The processes that load data: how they start, what they listen to, and that they end with the run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from selfdet.errors import UserError


class DeadWorker(UserError):
    """A process that loads data ended in the middle of its work: killed for want of memory, most often."""

    def __init__(self) -> None:
        super().__init__(
            "a data worker process ended unexpectedly, most often for lack of memory or of room in /dev/shm",
            "Use fewer --workers; 0 needs neither",
        )


def start_method() -> Any:
    """How workers are started: from a clean server process on Linux, afresh elsewhere; never by plain fork.

    A fork copies a process whose OpenMP pool, CUDA context and locks belong to threads that the copy does not have:
    it may hang at the first of them. The server is started before any of that exists in it, and imports torch once.
    """
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["selfdet.data.loader", "selfdet.data.labelled"])
    return context


def start_worker(worker: int) -> None:
    """What a worker does first."""
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


@contextmanager
def script_hidden() -> Iterator[None]:
    """Start processes that don't run the user's script again.

    Python imports the main script into every process it starts; without an `if __name__ == "__main__"` it would call
    us again in there. Nothing that our workers need is defined in it.
    """
    main = sys.modules["__main__"]
    hidden = {name: vars(main)[name] for name in ("__spec__", "__file__") if name in vars(main)}
    try:
        main.__spec__ = None
        vars(main).pop("__file__", None)
        yield
    finally:
        vars(main).update(**hidden)
