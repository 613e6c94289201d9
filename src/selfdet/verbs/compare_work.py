"""Working through the cells of a comparison beside other processes that do the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from selfdet.evaluation.comparison import judged
from selfdet.evaluation.detection import percent
from selfdet.training.leases import Lease, Leases
from selfdet.training.log import Reporter, duration, plural
from selfdet.verbs.compare_cells import Bench, Cell, best_multiple, finish, run_cell
from selfdet.verbs.compare_folder import POLL


class Worker:
    """One process at work on the `cells`; at most until `deadline` (of `time.monotonic`), None for no limit.

    `told` is called after every cell that this process has finished.
    """

    def __init__(
        self,
        bench: Bench,
        cells: Sequence[Cell],
        leases: Leases,
        reporter: Reporter,
        deadline: float | None,
        told: Callable[[], None],
    ) -> None:
        self.bench, self.cells, self.leases = bench, cells, leases
        self.reporter, self.deadline, self.told = reporter, deadline, told

    def work(self) -> bool:
        """Do what nobody else does until all is done; False when the time was up before.

        Raises: UserError naming the cell that can't be done; Interrupted after saving.
        """
        waiting = False
        while left := [cell for cell in self.cells if not self.bench.is_finished(cell)]:
            if self._minutes() < 0:
                return False
            lease, cell = self._claim(left)
            if lease is None or cell is None:
                if not waiting:
                    self.reporter.line(f"waiting for {plural(len(left), 'cell')} that other processes are at")
                waiting = True
                time.sleep(POLL)
                continue
            waiting = False
            with lease:
                # It may have been finished between the look and the claim.
                if not self.bench.is_finished(cell) and not self._do(cell, lease):
                    return False
        return True

    def _claim(self, left: Sequence[Cell]) -> tuple[Lease | None, Cell | None]:
        trying = {cell.start.slug for cell in left if cell.kind == "rate"}
        for cell in left:
            # A start's cells wait until its learning rate is known.
            if cell.kind == "finetune" and cell.start.slug in trying:
                continue
            lease = self.leases.claim(cell.name)
            if lease is not None:
                return lease, cell
        return None, None

    def _do(self, cell: Cell, lease: Lease) -> bool:
        """Whether there was time for all of it."""
        results = self.bench.results(self.cells)
        lr = self.bench.rate(cell, results)
        self.reporter.line(f"{cell.name}: {plural(self.bench.steps(cell.labels), 'step')} at learning rate {lr:g}")
        result = run_cell(self.bench, cell, lr, self._minutes())
        if result is None:
            return False
        if lease.lost:  # this process slept for so long that another took it for dead
            self.reporter.line(f"{cell.name}: taken over by another process, left to it")
            return True
        finish(self.bench, cell, result)
        self._say(cell, result, [*results, result])
        self.told()
        return True

    def _say(self, cell: Cell, result: dict[str, Any], results: Sequence[dict[str, Any]]) -> None:
        steps = sum(self.bench.steps(each.labels) for each in self.cells if not self.bench.is_finished(each))
        pace = sum(each["seconds"] for each in results) / max(1, sum(each["steps"] for each in results))
        score = "mIoU" if self.bench.design.segments else "AP"
        found = f"{score} {percent(judged(result))} %" if "diverged" not in result else result["diverged"]
        ahead = f", about {duration(pace * steps)} left in one process" if steps else ""
        self.reporter.line(
            f"{cell.name}: {found} after {duration(result['seconds'])}; {len(results)} of {len(self.cells)} done{ahead}"
        )
        if cell.kind == "rate":
            self._say_rate(cell, [each for each in results if each["kind"] == "rate"])

    def _say_rate(self, cell: Cell, results: Sequence[dict[str, Any]]) -> None:
        """Which rate a start has, once all of its rates have been tried."""
        slug = cell.start.slug
        own = [each for each in results if each["start"] == slug]
        if len(own) < sum(each.kind == "rate" and each.start.slug == slug for each in self.cells):
            return
        multiples = sorted(each["multiple"] for each in own)
        best = best_multiple(own, slug)
        if not any(judged(each) for each in own):
            why = "is used, as none that was tried found anything"
        elif len(multiples) > 1 and best in (multiples[0], multiples[-1]):
            why = "is best: the edge of --lr-grid, so that others beyond it may be better"
        else:
            why = "is best"
        self.reporter.line(f"{slug}: {best:g} times the usual learning rate {why}")

    def _minutes(self) -> float:
        """Left for this process: 0 for no limit, below 0 when the time is up."""
        if self.deadline is None:
            return 0.0
        left = (self.deadline - time.monotonic()) / 60
        return left if left > 0 else -1.0
