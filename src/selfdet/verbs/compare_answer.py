"""What a comparison has found so far, as a page, a table and figures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from selfdet.drawing.comparison import write_comparison
from selfdet.evaluation.comparison import Comparison
from selfdet.training.leases import Leases
from selfdet.verbs.compare_cells import Bench, Cell
from selfdet.verbs.compare_folder import POLL
from selfdet.verbs.compare_starts import NamedStart

EVERY = 300.0  # seconds between two answers while the work goes on


class Answer:
    """Writes the answer of a comparison from the cells that are finished, whichever process did them."""

    def __init__(
        self,
        bench: Bench,
        leases: Leases,
        starts: Sequence[NamedStart],
        cells: Sequence[Cell],
        settings: Mapping[str, Any],
        words: Mapping[str, str],
    ) -> None:
        self.bench, self.leases, self.cells = bench, leases, cells
        self.starts = {each.slug: each.words for each in starts}
        self.settings, self.words = settings, words
        self.last = time.monotonic()

    def now_and_then(self) -> None:
        """Write it, if the last was some minutes ago and nobody else is at it."""
        if time.monotonic() - self.last >= EVERY:
            self.last = time.monotonic()
            if (lease := self.leases.claim("answer")) is not None:
                with lease:
                    self._write()

    def write(self) -> dict[str, Any]:
        """Write it, after whoever is at it."""
        while (lease := self.leases.claim("answer")) is None:
            time.sleep(POLL)
        with lease:
            return self._write()

    def _write(self) -> dict[str, Any]:
        planned = sum(cell.kind == "finetune" for cell in self.cells)
        found = Comparison(self.starts, self.bench.results(self.cells), planned, self.settings, self.words)
        return write_comparison(self.bench.out, found)
