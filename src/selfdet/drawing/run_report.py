"""The page of a run: what was done, what came of it, and how, for somebody who was not there."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from selfdet.drawing.report import Item, Points, Section, Table, Text, write_report
from selfdet.drawing.run_log import events
from selfdet.drawing.run_pictures import SCORE, Examples, charts, example_pictures, first_views, proposals
from selfdet.drawing.run_segmentation import segmentation_items
from selfdet.drawing.run_settings import setting_rows
from selfdet.drawing.run_stages import StageRun, WholeRun, spoken
from selfdet.drawing.run_words import health, purpose
from selfdet.training.log import duration, plural

CLASSES = 20  # that have a line each; of more those with the highest and the lowest AP
TITLES = {"backbone": "The backbone", "detector": "Neck and head", "finetune": "How training went"}
# Counts of elements in a transfer report, and what each says.
COUNTS = ("reused", "started afresh", "missing", "of another shape", "not wanted")

Usual = Mapping[str, Mapping[str, Any]]


def write_run_report(
    whole: WholeRun, out: Path | None = None, *, usual: Usual, examples: Examples | None = None
) -> Path:
    """Write the page of a run, finished or not, to `out` (its report.html if None); returns the file.

    `usual`: stage → setting → default, as `setting_rows` takes them; `examples`: what its detector finds.
    Pieces that are missing are left out or said to be.
    Raises: OSError when the page can't be written.
    """
    sections: list[Section] = []
    if examples is not None:
        sections.append(_found(whole, examples))
    sections.append(_what_was_run(whole, usual))
    if boxes := list(proposals(whole)):
        sections.append(Section("Boxes without labels", boxes))
    sections += [Section(_title(stage), list(_course(stage))) for stage in whole.stages if stage.begun]
    sections.append(_rest(whole, usual))
    sections.append(_environment(whole))
    return write_report(
        whole.run.report if out is None else out,
        title=_headline(whole),
        intro=_intro(whole),
        facts=_facts(whole),
        sections=sections,
    )


def _title(stage: StageRun) -> str:
    method = stage.config.get("method")
    return TITLES[stage.kind] + (f": {spoken(method)}" if method else "")


def _headline(whole: WholeRun) -> str:
    of = f"{spoken(whole.config.get('segmenter') or whole.config.get('detector'))} on {whole.config.get('backbone')}"
    if whole.verb == "pretrain" and not any(stage.kind == "detector" for stage in whole.stages):
        of = str(whole.config.get("backbone"))
    return f"selfdet {whole.verb}: {of}"


def _intro(whole: WholeRun) -> str:
    """What was done, in words, and whether it is finished."""
    config = whole.config
    if whole.verb == "finetune":
        chosen = config.get("fraction", {})
        counted = plural(int(chosen.get("image_ids", 0)), "labelled image")
        share = chosen.get("fraction", 1.0)
        part = "" if share == 1 else f", {100 * share:g} % of those"
        start = "random weights" if config.get("init") == "scratch" else config.get("init")
        what = "The segmenter" if whole.segments else "The detector"
        text = f"{what} was trained on {counted}{part} of {config.get('data')}, starting from {start}."
    else:
        stages = {"proposals": "boxes that may hold objects", "backbone": "the backbone", "detector": "neck and head"}
        done = [stages[stage] for stage in config.get("stages", []) if stage in stages]
        listed = done[0] if len(done) == 1 else f"{', '.join(done[:-1])} and {done[-1]}" if done else "nothing"
        images = plural(int(config.get("images_found", 0)), "image")
        text = f"Learned from {images} of {config.get('images')}, without labels: {listed}."
    text += f" The run's folder is {whole.run.path}."
    for stage in whole.stages:
        if not stage.finished:
            where = "has not begun" if not stage.begun else f"stands at step {stage.done:,} of {stage.steps:,}"
            what = "Training" if stage.kind == "finetune" else f"The {stage.kind} stage"
            text += f"\n\nThis run is not finished. {what} {where}; the command that began it continues with --resume."
            break
    return text


def _facts(whole: WholeRun) -> dict[str, str | int | float | None]:
    facts: dict[str, str | int | float | None] = {}
    if whole.verb == "finetune":
        last = whole.stages[0].last
        figures = {"AP": last.get("AP"), "AP50": last.get("AP50"), "AP of masks": last.get("mask", {}).get("AP")}
        figures |= {"mIoU": last.get("mIoU"), "right pixels": last.get("pixel_accuracy")}
        facts |= {name: f"{100 * value:.1f} %" for name, value in figures.items() if value is not None}
        facts["labelled images"] = f"{whole.config.get('fraction', {}).get('image_ids', 0):,}"
    else:
        facts["images"] = f"{whole.config.get('images_found', 0):,}"
    steps, done = sum(stage.steps for stage in whole.stages), sum(stage.done for stage in whole.stages)
    facts["steps"] = f"{done:,}" if whole.finished else f"{done:,} of {steps:,}"
    if whole.seconds:
        facts["training time"] = duration(whole.seconds)
    facts["state"] = "finished" if whole.finished else "not finished"
    return facts


def _found(whole: WholeRun, examples: Examples) -> Section:
    """AP by size and class, and what the detector finds on a few images."""
    if whole.segments:
        return Section(
            "What it finds", [*segmentation_items(whole.stages[0].last, examples.words), *example_pictures(examples)]
        )
    items: list[Item] = []
    last = whole.stages[0].last
    if last.get("AP") is not None:
        keys = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APs": "small", "APm": "medium", "APl": "large"}
        kinds = {"boxes": last, "masks": last["mask"]} if "mask" in last else {"boxes": last}
        table: list[list[str | float | None]] = [
            [of, *(_percent(own.get(key)) for key in keys)] for of, own in kinds.items()
        ]
        header = ["of", *keys.values()]
        if len(kinds) == 1:
            header, table = header[1:], [row[1:] for row in table]
        counted = f"COCO AP in % at the end of training, on {plural(last.get('images', 0), 'image')}."
        items.append(Table(header, table, counted))
        classes = sorted(last.get("per_class", {}).items(), key=lambda entry: -(entry[1] or 0.0))
        if len(classes) > 1:
            chosen = classes if len(classes) <= CLASSES else classes[: CLASSES // 2] + classes[-CLASSES // 2 :]
            which = "" if len(chosen) == len(classes) else f", the best and worst of {len(classes)} classes"
            names = ["AP", "AP of masks"] if "mask" in last else ["AP"]
            rows = [[name, *(_percent(each["per_class"].get(name)) for each in kinds.values())] for name, _ in chosen]
            items.append(Table(["class", *names], rows, f"AP in % by class{which}."))
    items.append(Text(examples.words))
    if examples.images:
        items.append(Text(f"First the labels of each image, then what is found with a score of {SCORE} or more."))
    return Section("What it finds", [*items, *example_pictures(examples)])


def _what_was_run(whole: WholeRun, usual: Usual) -> Section:
    """The stages, and the settings that somebody or the data chose."""
    items: list[Item] = []
    if whole.verb == "pretrain":
        rows = [[stage.kind, *_stage_row(stage)] for stage in whole.stages]
        if "proposals" in whole.config.get("stages", []):
            made = "finished" if whole.run.proposals.is_file() else "–"
            rows.insert(0, ["proposals", "boxes without labels", None, made])
        items.append(Table(["stage", "method", "steps", "state"], rows))
    for stage in whole.stages:
        chosen = setting_rows(stage.config, usual.get(stage.kind, {}), stage.reasons).chosen
        of = f" of the {stage.kind} stage" if len(whole.stages) > 1 else ""
        if chosen:
            caption = f"Settings{of} that were given, differ from the usual, or follow from the data."
            items.append(Table(["setting", "value", "why"], chosen, caption))
    if noted := list(dict.fromkeys(events(whole.log))):
        items += [Text("What happened on the way:"), Points(noted)]
    return Section("What was run", items)


def _stage_row(stage: StageRun) -> list[str | int | None]:
    if not stage.begun:
        return [None, None, "not begun"]
    steps = f"{stage.done:,}" if stage.finished else f"{stage.done:,} of {stage.steps:,}"
    state = "finished" if stage.finished else "not finished"
    return [spoken(stage.config.get("method")), steps, state]


def _course(stage: StageRun) -> Iterator[Item]:
    """How one stage went: what it is, its figures in words and curves, its views, its start."""
    if words := purpose(stage):
        yield Text(words)
    if sentences := health(stage):
        yield Points(sentences)
    yield from first_views(stage)
    if curves := charts(stage):
        yield Text("The curves of training:")
        yield from curves
    remarks = [line for beginning in stage.beginnings[:1] for line in beginning.remarks]
    if stage.transfer:
        used = [place for place in range(2, 7) if any(row[place] for row in stage.transfer)]
        header = ["part", "share reused", *(COUNTS[place - 2] for place in used)]
        rows = [[*row[:2], *(f"{row[place]:,}" for place in used)] for row in stage.transfer]
        yield Table(header, rows, "What became of the start's weights, in numbers of the network.")
    else:
        start = stage.config.get("init", stage.config.get("backbone_weights"))
        words = "random weights" if start in (None, "random", "scratch") else f"the weights that {start} stands for"
        yield Text(f"It started from {words}.")
    if remarks:
        yield Points(remarks)


def _rest(whole: WholeRun, usual: Usual) -> Section:
    """Every setting that is as usual, and facts that config.yaml keeps."""
    items: list[Item] = []
    for stage in whole.stages:
        settings = setting_rows(stage.config, usual.get(stage.kind, {}), stage.reasons)
        of = f" of the {stage.kind} stage" if len(whole.stages) > 1 else ""
        if settings.as_usual:
            items.append(Table(["setting", "value"], settings.as_usual, f"Settings{of} that are as usual."))
        if settings.facts:
            items.append(Table(["name", "value"], settings.facts, f"What config.yaml{of} keeps besides."))
    return Section("All other settings", items or [Text("None are known.")])


def _environment(whole: WholeRun) -> Section:
    """What the run computed on, as its log says, and what made this page."""
    devices = dict.fromkeys(beginning.device for stage in whole.stages for beginning in stage.beginnings)
    made = ", ".join(f"{name} {_version(name)}" for name in ("selfdet", "torch", "torchvision"))
    rows: list[list[str | int | float | None]] = [["the run", device] for device in devices]
    rows.append(["this page", f"{made}, Python {platform.python_version()}"])
    return Section("Environment", [Table(["", "made with"], rows)])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "of unknown version"


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 1)
