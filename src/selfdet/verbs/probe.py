"""`selfdet probe`: what the frozen features of backbones tell apart, in seconds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfdet.data.labels import load_labels
from selfdet.data.probe_samples import ProbeSamples, folder_samples, labelled_samples
from selfdet.data.untrusted import expanded
from selfdet.drawing.curves import plot_bars
from selfdet.errors import UserError
from selfdet.evaluation.probe import CLASSIFIERS, TASKS, chance, features, scores, settle, splits
from selfdet.interchange.named_backbones import name_backbones
from selfdet.models.backbones import Backbone
from selfdet.training.log import Reporter, plural
from selfdet.training.rundir import check_out_is_new, write_text
from selfdet.training.runtime import start_runtime
from selfdet.verbs.evaluate import check_batch_size

BLIND = "without looking"  # always the commonest class
Parts = dict[str, tuple[ProbeSamples, ProbeSamples | None]]


def probe(
    *,
    init: list[str],
    images: str | None = None,
    data: str | None = None,
    val_data: str | None = None,
    out: str | None = None,
    over_time: bool = False,
    backbone: str | None = None,
    image_size: int = 224,
    limit: int = 1000,
    min_side: float = 16.0,
    background: bool = True,
    neighbours: int = 20,
    held_out: float = 0.3,
    seeds: int = 5,
    seed: int = 0,
    batch_size: int = 32,
    threads: int = 0,
) -> dict[str, Any]:
    """Measure what backbones tell apart without training them: classes of images, or of labelled boxes.

    A linear classifier and nearest neighbours are fitted on frozen features and judged on images held out. Of labels,
    boxes are probed twice: cut out, each a picture of its own, which is classification; and pooled within their images
    from the maps a detector reads, beside places where nothing is labelled. The untrained network always stands beside.

    Args:
        init: run directory, weights file, library:NAME or scratch; repeat it for several in one table.
        images: the labels' folder of images; without data a folder with a folder for each class.
        data: labels, of any format that finetune reads.
        val_data: labels to evaluate on; if not given, a part of the images of data, drawn anew for each of the seeds.
        out: folder to make for probe.json and probe.png; none is written if not given.
        over_time: show the snapshots of each run (pretrain --snapshots), in order, instead of the run.
        backbone: architecture, if the weights don't record theirs; resnet50 if not given.
        image_size: side that images are scaled to, whatever their shape, pixels; boxes cut out to half of it.
        limit: boxes, or images, that are looked at; drawn by the seed.
        min_side: boxes with a shorter side, pixels of the file, are left out.
        background: places of the same sizes where nothing is labelled, as a class of their own.
        neighbours: nearest neighbours that vote, weighted by their similarity.
        held_out: share of the images to evaluate on, 0…1.
        seeds: splits that the mean is over.
        seed: seed of the draw, the splits and the untrained network.
        batch_size: pictures at a time; changes speed only.
        threads: CPU threads; 0 for torch's choice.

    Raises: UserError for a single class, fewer samples than neighbours, no boxes, no start.

    Example:
        selfdet probe --init runs/pre --data labels/train.json --images photos/
    """
    _check(neighbours, held_out, seeds, limit, image_size)
    check_batch_size(batch_size)
    folder = None if out is None else Path(out)
    if folder is not None:
        check_out_is_new(folder)
    named = name_backbones(init, backbone, over_time)
    reporter = Reporter()
    options = {"min_side": min_side, "background": background}
    parts = _samples(images, data, val_data, image_size, limit, options, seed, reporter)
    ways = {}
    for task, (samples, judges) in parts.items():
        _check_samples(TASKS[task], samples, judges, neighbours, held_out)
        seeded = range(seed, seed + seeds)
        ways[task] = list(splits(samples, held_out, seeded)) if judges is None else [_apart(samples, judges)]
        never = _never_judged(TASKS[task], samples, _labels(samples, judges), ways[task])
        if never:
            reporter.line(f"{TASKS[task]}: never both learned and judged, for want of images: {', '.join(never)}")
    runtime = start_runtime(devices=1, precision="fp32", threads=threads)
    models = []
    for each in named:
        net = each.build(seed)
        _check_image_size(net, image_size, data is not None)
        net = runtime.place(net).eval()
        found = {}
        for task, (samples, judges) in parts.items():
            if each.init is None:
                settle(net, samples.pictures, batch_size)
            known = torch.cat([features(net, part, batch_size) for part in (samples, judges) if part is not None])
            labels = _labels(samples, judges)
            rows = [scores(known[a], labels[a], known[b], labels[b], neighbours) for a, b in ways[task]]
            found[task] = {kind: _means([row[kind] for row in rows]) for kind in CLASSIFIERS}
        models.append({"name": each.name, "init": each.init, "backbone": each.architecture, "scores": found})
    blind = {}
    for task, (samples, judges) in parts.items():
        labels = _labels(samples, judges)
        blind[task] = _means([chance(labels[a], labels[b]) for a, b in ways[task]])
    result: dict[str, Any] = {
        "out": out,
        "image_size": image_size,
        "neighbours": neighbours,
        "tasks": {
            task: {
                "samples": len(samples),
                "classes": samples.count(),
                "splits": len(ways[task]),
                "chance": blind[task],
            }
            for task, (samples, _) in parts.items()
        },
        "models": models,
    }
    for line in _table(result):
        reporter.line(line)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {out} cannot be written: {error.strerror}", "Name another folder") from None
        write_text(folder / "probe.json", json.dumps(result, indent=1))
        _draw(result, folder / "probe.png")
        reporter.line(f"figures and chart: {folder}")
    return result


def _check(neighbours: int, held_out: float, seeds: int, limit: int, image_size: int) -> None:
    """Raises: UserError for numbers that can't be meant."""
    counts = {"--neighbours": neighbours, "--seeds": seeds, "--limit": limit, "--image-size": image_size}
    for flag, value in counts.items():
        if value < 1:
            raise UserError(f"{flag} is {value}, expected 1 or more", "Leave it out")
    if not 0 < held_out < 1:
        raise UserError(f"--held-out is {held_out:g}, expected a share between 0 and 1", "0.3 is usual")


def _check_image_size(net: Backbone, image_size: int, boxes: bool) -> None:
    """Raises: UserError where pictures, or boxes cut out, are too small for a backbone."""
    stride = net.strides[-1]
    if boxes and image_size // 2 < stride:
        raise UserError(
            f"--image-size {image_size}: boxes are cut out to half of it, below the stride {stride} of {net.name}",
            f"Use at least {2 * stride}, better 224 or more",
        )
    net.check_image_size(image_size // 2 if boxes else image_size)


def _samples(
    images: str | None,
    data: str | None,
    val_data: str | None,
    size: int,
    limit: int,
    options: Mapping[str, Any],
    seed: int,
    reporter: Reporter,
) -> Parts:
    """What is probed, by task, each with what it is judged by where that was given.

    Raises: UserError when there is nothing, or classes differ.
    """
    if data is None:
        if images is None or not expanded(images).is_dir():
            raise UserError(
                "probe needs classes: --data with labels, or --images with a folder for each class",
                "`selfdet probe --help` shows an example",
            )
        if val_data is not None:
            raise UserError("--val-data goes with --data", "Leave it out: a part of the images is held out")
        whole, unreadable = folder_samples(images, size, limit, seed)
        parts: Parts = {"images": (whole, None)}
    else:
        labels = load_labels(data, images)
        crops, inside, unreadable = labelled_samples(labels, size, limit, seed=seed, **options)
        parts = {"crops": (crops, None), "boxes": (inside, None)}
        if val_data is not None:
            judges = load_labels(val_data, images)
            if judges.classes != labels.classes:
                raise UserError(
                    f"{val_data} has other classes than {data}: {', '.join(judges.classes[:5])}",
                    "Use label files with the same categories",
                )
            outer, inner, more = labelled_samples(judges, size, limit, seed=seed, **options)
            parts = {"crops": (crops, outer), "boxes": (inside, inner)}
            unreadable += more
    for path in unreadable[:5]:
        reporter.line(f"unreadable, left out: {path}")
    if len(unreadable) > 5:
        reporter.line(f"unreadable, left out: {plural(len(unreadable), 'image')} in all")
    return parts


def _check_samples(
    words: str, samples: ProbeSamples, judges: ProbeSamples | None, neighbours: int, held_out: float
) -> None:
    """Raises: UserError when there is nothing to tell apart, or nobody to ask."""
    seen = [name for name, count in samples.count().items() if count]
    if len(seen) < 2:
        raise UserError(
            f"a probe of {words} needs two classes, and there is only {', '.join(seen) or 'none'}",
            "Give images of another class too" + ("" if samples.boxes is None else ", or leave --no-background out"),
        )
    if judges is None and len(samples.image.unique()) < 2:
        raise UserError(
            f"all samples of {words} are of one image, so none can be held out", "Give more images, or --val-data"
        )
    left = len(samples) if judges is not None else int(len(samples) * (1 - held_out))
    if left < neighbours:
        raise UserError(
            f"{plural(left, 'sample')} to learn from, of {words}, are fewer than {neighbours} neighbours",
            f"Give more images, or --neighbours {max(1, left // 4)}",
        )


def _never_judged(
    words: str, samples: ProbeSamples, labels: Tensor, ways: Sequence[tuple[Tensor, Tensor]]
) -> list[str]:
    """The classes that no split has on both sides, such as those of one image only.

    Raises: UserError when a split has fewer than two classes on both sides: its accuracy would say nothing.
    """
    shared = [set(labels[learned].tolist()) & set(labels[judged].tolist()) for learned, judged in ways]
    if min(len(each) for each in shared) < 2:
        raise UserError(
            f"a probe of {words} needs two classes to learn and to judge by, each in two images and more, "
            f"and there are {', '.join(f'{count} {name}' for name, count in samples.count().items() if count)}",
            "Give more images of each class",
        )
    lost = set(labels.tolist()) - set().union(*shared)
    return [samples.classes[label] for label in sorted(lost)]


def _apart(samples: ProbeSamples, judges: ProbeSamples) -> tuple[Tensor, Tensor]:
    """The one split where somebody else judges, whose samples come after."""
    return torch.arange(len(samples)), torch.arange(len(samples), len(samples) + len(judges))


def _labels(samples: ProbeSamples, judges: ProbeSamples | None) -> Tensor:
    return samples.labels if judges is None else torch.cat([samples.labels, judges.labels])


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Each score's mean and sample standard deviation over the splits, and its values."""
    told = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        sd = statistics.stdev(values) if len(values) > 1 else None
        told[name] = {"mean": statistics.fmean(values), "sd": sd, "values": values}
    return told


def _table(result: Mapping[str, Any]) -> list[str]:
    """Balanced accuracies as lines of a terminal, accuracies in brackets."""
    width = max(len(BLIND), *(len(model["name"]) for model in result["models"]))
    lines = []
    for task, about in result["tasks"].items():
        classes = ", ".join(f"{count} {name}" for name, count in list(about["classes"].items())[:6])
        more = "" if len(about["classes"]) <= 6 else f", … ({len(about['classes'])} classes)"
        lines += [f"{TASKS[task]}: {classes}{more}; balanced accuracy % (accuracy %)"]
        lines += [f"  {'':{width}}  {'  '.join(f'{words:>20}' for words in CLASSIFIERS.values())}"]
        for model in result["models"]:
            cells = "  ".join(f"{_cell(model['scores'][task][kind]):>20}" for kind in CLASSIFIERS)
            lines.append(f"  {model['name']:{width}}  {cells}")
        lines.append(f"  {BLIND:{width}}  {_cell(about['chance']):>20}")
    return lines


def _cell(score: Mapping[str, Any]) -> str:
    balanced, plain = score["balanced_accuracy"], score["accuracy"]
    sd = "" if balanced["sd"] is None else f" ± {100 * balanced['sd']:.1f}"
    return f"{100 * balanced['mean']:.1f}{sd} ({100 * plain['mean']:.1f})"


def _draw(result: Mapping[str, Any], out: Path) -> None:
    """Bars of the balanced accuracies."""
    groups: dict[str, dict[str, list[float | None]]] = {}
    for task in result["tasks"]:
        for kind, words in CLASSIFIERS.items():
            groups[f"{TASKS[task]}, {words}"] = {
                model["name"]: [100 * v for v in model["scores"][task][kind]["balanced_accuracy"]["values"]]
                for model in result["models"]
            }
            blind = result["tasks"][task]["chance"]["balanced_accuracy"]["values"]
            groups[f"{TASKS[task]}, {words}"][BLIND] = [100 * value for value in blind]
    plot_bars(groups, out, title="What frozen features tell apart", x_label="balanced accuracy, %")
