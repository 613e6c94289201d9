"""What a comparison is about to do, and how long that may take."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfdet.data.mask_labels import MaskLabels
from selfdet.errors import UserError
from selfdet.evaluation.inference import score
from selfdet.evaluation.segmenting import Sight, score_segmentation
from selfdet.interchange.segmenters import load_segmenter
from selfdet.interchange.starts import open_detector, resolve_start
from selfdet.training.log import duration, plural
from selfdet.training.runtime import start_runtime
from selfdet.verbs.compare_cells import Bench, Cell, in_its_own_log
from selfdet.verbs.compare_labels import Amount, AnyLabels, LabelSet, label_set, marked
from selfdet.verbs.compare_starts import NamedStart
from selfdet.verbs.finetune import finetune

TRIAL_STEPS, WARM_STEPS, TRIAL_IMAGES = 6, 2, 16  # the first steps start workers and compile kernels


def plan_cells(
    starts: Sequence[NamedStart], sets: Sequence[LabelSet], tuning: LabelSet | None, multiples: Sequence[float]
) -> list[Cell]:
    """All cells in the order in which they are done: learning rates first, then seed by seed, so that every seed that
    is through answers the whole question once."""
    rates = [Cell("rate", start, tuning, multiple) for start in starts for multiple in multiples] if tuning else []
    return [*rates, *(Cell("finetune", start, labels) for labels in sets for start in starts)]


def tuning_set(labels: AnyLabels, fraction: float, outside: int, multiples: Sequence[float]) -> LabelSet:
    """The labels that learning rates are tried on, those of seed 0.

    Raises: UserError for a fraction or multiples that can't be used, and where no image with a box is left outside.
    """
    if not 0 < fraction < 1:
        raise UserError(
            f"--tune-fraction {fraction:g} leaves no images to score learning rates on",
            "Give a share above 0 and below 1, or --lr for one rate that is not tuned",
        )
    if not multiples or any(not 0 < multiple < float("inf") for multiple in multiples):
        raise UserError(
            f"--lr-grid {' '.join(f'{each:g}' for each in multiples)}: expected multiples above 0",
            "They are of the usual learning rate, such as 0.5 1 2",
        )
    made = label_set(labels, Amount(fraction=fraction), 0, outside)
    if not any(marked(labels.subset(made.outside)).values()):
        raise UserError(
            f"--tune-fraction {fraction:g} leaves no box outside of it to score learning rates on",
            "Use a smaller one, or --lr for one rate that is not tuned",
        )
    return made


def plan_lines(bench: Bench, cells: Sequence[Cell], done: int) -> Iterator[str]:
    """The plan: how many cells, with what, of which so many are done."""
    rates = [cell for cell in cells if cell.kind == "rate"]
    rest = [cell for cell in cells if cell.kind == "finetune"]
    starts = len({cell.start.slug for cell in rest})
    sets = {cell.labels.name: cell.labels for cell in rest}
    amounts = {each.amount: [other for other in sets.values() if other.amount == each.amount] for each in sets.values()}
    seeds = len({each.seed for each in sets.values()})
    yield (
        f"{plural(len(rest), 'cell')}: {plural(starts, 'start')} × "
        f"{plural(len(amounts), 'amount')} of labels × {plural(seeds, 'seed')}"
        + (f", after {plural(len(rates), 'cell')} that choose learning rates" if rates else "")
        + (f"; {done} of all done already" if done else "")
    )
    marks = "classes, each once an image" if bench.design.segments else "boxes"
    for amount, own in amounts.items():
        yield (
            f"  {amount.slug}: {_span([len(each.chosen) for each in own])} images with "
            f"{_span([each.boxes for each in own])} {marks}, {_span([bench.steps(each) for each in own])} steps of "
            f"{_span([bench.batch(each) for each in own])}"
        )
    if rates:
        tuning = rates[0].labels
        tried = sorted({bench.rate(cell, []) for cell in rates})
        yield (
            f"  learning rates {', '.join(f'{rate:g}' for rate in tried)} are tried with {len(tuning.chosen)} images, "
            f"{bench.steps(tuning)} steps, and scored on {len(tuning.outside)} other training images"
        )
    if bench.curve_points and any(each.outside for each in sets.values()):
        outside = _span([len(each.outside) for each in sets.values() if each.outside])
        yield f"  curves are of {outside} training images outside the labelled ones, {bench.curve_points} points a cell"
    yield f"  val data is evaluated once a cell, at its end: {bench.val_data}"


def time_line(bench: Bench, cells: Sequence[Cell], results: Sequence[Mapping[str, Any]], val: AnyLabels) -> str:
    """How long the cells that are left take one process; from those that are done, else from a few steps."""
    left = [cell for cell in cells if bench.result(cell) is None]
    steps = sum(bench.steps(cell.labels) for cell in left)
    known = [cell for cell in results if cell["seconds"]]
    if known:
        pace = sum(cell["seconds"] for cell in known) / sum(cell["steps"] for cell in known)
        return f"about {duration(pace * steps)} for the {plural(len(left), 'cell')} to come, in one process"
    pace, look = _trial(bench, max(cells, key=lambda cell: bench.batch(cell.labels)), val)
    images = sum(_images_evaluated(bench, cell, val) for cell in left)
    return (
        f"about {duration(pace * steps + look * images)} for {plural(len(left), 'cell')} in one process: "
        f"{steps:,} steps of {pace:.2g} s and {images:,} images evaluated in {look:.2g} s each, timed just now"
    )


def _images_evaluated(bench: Bench, cell: Cell, val: AnyLabels) -> int:
    outside = len(cell.labels.outside)
    return (
        outside if cell.kind == "rate" else len(val) + outside * (bench.curve_points + 1 if bench.curve_points else 0)
    )


def _trial(bench: Bench, cell: Cell, val: AnyLabels) -> tuple[float, float]:
    """Seconds a step and an image evaluated: some steps of a cell, in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as scratch, in_its_own_log():
        told = bench.told(cell, lr=1e-4)
        told |= {"init": "scratch", "out": f"{scratch}/run", "val_data": None, "evaluate_every": None}
        told |= {"steps": TRIAL_STEPS, "log_every": 1, "warmup_steps": 0}
        finetune(**told, devices="1", workers=bench.workers)
        rows = [json.loads(line)["seconds"] for line in Path(scratch, "run", "timing.jsonl").read_text().splitlines()]
        pace = (rows[-1] - rows[WARM_STEPS - 1]) / (len(rows) - WARM_STEPS)
        few = val.subset([record.image_id for record in val.records[:TRIAL_IMAGES]])
        runtime = start_runtime(devices=1, precision=bench.precision, threads=bench.threads)
        start = resolve_start(f"{scratch}/run")
        if isinstance(few, MaskLabels):
            segmenter, note = load_segmenter(start)
            runtime.place(segmenter)
            begun = time.monotonic()
            score_segmentation(segmenter, few, Sight(note["image_size"], note["crop_size"]), runtime.fabric)
        else:
            detector = runtime.place(open_detector(start, scratch)[0])
            begun = time.monotonic()
            score(detector, few, bench.design.image_size, runtime.fabric)
        return pace, (time.monotonic() - begun) / len(few)


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}…{high:,}"
