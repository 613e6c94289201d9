"""`selfdet report`: one page that shows a run to somebody who was not there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

from selfdet.data.images import UnreadableImage
from selfdet.data.labelled import resize_sample
from selfdet.data.labels import ImageRecord, load_labels, read_sample
from selfdet.data.mask_labels import load_mask_labels
from selfdet.data.masks import encode_masks
from selfdet.data.sample import Sample
from selfdet.data.untrusted import expanded
from selfdet.detectors.base import Detector
from selfdet.detectors.network import Network
from selfdet.detectors.segmenter import Segmenter
from selfdet.drawing.run_pictures import Example, Examples, spread
from selfdet.drawing.run_report import write_run_report
from selfdet.drawing.run_stages import WholeRun, read_run
from selfdet.errors import UserError
from selfdet.evaluation.inference import detect
from selfdet.interchange.segmenters import load_segmenter
from selfdet.interchange.starts import match_categories, open_detector, resolve_start
from selfdet.training.log import Reporter
from selfdet.training.runtime import Runtime, start_runtime
from selfdet.verbs.finetune_choices import PartScales, labelled_subset
from selfdet.verbs.finetune_detection import Detection
from selfdet.verbs.finetune_segmentation import Segmentation
from selfdet.verbs.pretrain_detector import DetectorStageSettings
from selfdet.verbs.report_segmentation import Shown, segmentation_images
from selfdet.verbs.stages import BACKBONE, TEMPERATURES

SHOWN = 6  # images that a detector is tried on
OURS = b'<meta name="generator" content="selfdet">'


def report(
    *,
    init: str,
    out: str | None = None,
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
    threads: int = 0,
) -> dict[str, Any]:
    """Show a run on one page: what was run, what it finds, curves, first views, health in words, settings.

    The page is a single HTML file that loads nothing. pretrain and finetune write it themselves; this draws it again,
    also of a run that is not finished.

    Args:
        init: run directory.
        out: HTML file to write; report.html in the run's folder if not given.
        precision: precision of the detector that is shown at work; auto takes bf16 where the hardware multiplies it.
        threads: CPU threads; 0 for torch's choice.

    Raises: UserError when `init` is no run or the file can't be written.

    Example:
        selfdet report --init runs/ft
    """
    whole = read_run(expanded(init))
    target = whole.run.report if out is None else _target(out)
    examples = None
    if whole.verb == "finetune":
        examples = _from_weights(whole, precision, threads)
    try:
        write_run_report(whole, target, usual=usual_settings(whole), examples=examples)
    except OSError as error:
        raise UserError(f"--out {target} cannot be written: {error.strerror}", "Name another file with --out") from None
    Reporter().line(f"report: {target}")
    return {"report": str(target), "finished": whole.finished}


def report_at_the_end(out: str | Path, runtime: Runtime, reporter: Reporter, network: Network | None = None) -> None:
    """Write the page of a run that has just trained, `network` being what it fine-tuned.

    Whatever is wrong with it is said and no more: a run is not to fail for the want of its page.
    """
    if not runtime.first:
        return
    try:
        whole = read_run(out)
        examples = None if network is None else examples_of(whole, network, runtime.fabric)
        write_run_report(whole, usual=usual_settings(whole), examples=examples)
    except Exception as error:
        reason = error.message if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        reporter.line(f"the report could not be written ({reason}); selfdet report --init {out} tries again")
    else:
        reporter.line(f"report: {whole.run.report}")


def usual_settings(whole: WholeRun) -> dict[str, dict[str, Any]]:
    """For each stage its settings and their defaults, `...` where there is none, from the verb's own signature."""
    function = getattr(import_module(f"selfdet.verbs.{whole.verb}"), whole.verb)
    parameters = inspect.signature(function).parameters
    usual = {name: ... if p.default is inspect.Parameter.empty else p.default for name, p in parameters.items()}
    if whole.verb == "finetune":
        job = Segmentation if whole.segments else Detection
        usual |= {"scale_jitter": job.jitter}
        scales = {f"lr_scale.{name}": value for name, value in asdict(PartScales()).items()}
        return {"finetune": usual | scales | {"fraction.fraction": usual["fraction"]}}
    method = next((stage.config.get("method") for stage in whole.stages if stage.kind == "backbone"), None)
    temperature = {"temperature": TEMPERATURES[method]} if method in TEMPERATURES else {}
    usual |= {"backbone": BACKBONE}
    own = {field.name: field.default for field in fields(DetectorStageSettings)}
    return {"backbone": usual | temperature, "detector": usual | own | {"momentum_start": own["momentum"]}}


def _target(out: str) -> Path:
    """A file that may be written: a new one, or a page of ours. Raises: UserError."""
    path = expanded(out)
    if path.is_dir():
        raise UserError(f"--out {out} is a folder", "Name a file, such as report.html, in it")
    if path.is_file() and OURS not in path.read_bytes()[:2000]:
        raise UserError(f"--out {out} exists already and is no report", "Name a new file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}", "Name a file in another folder") from None
    return path


def _from_weights(whole: WholeRun, precision: str, threads: int) -> Examples:
    """What the detector of a run finds, read from its weights: the final ones, else the last checkpoint's."""
    product = whole.stages[0].product
    weights = next((file for file in (product, whole.run.last) if file.is_file()), None)
    if weights is None:
        return Examples("The run has no weights yet, so nothing can be shown of what it finds.")
    try:
        start = resolve_start(str(weights))
        network: Network = (load_segmenter(start) if whole.segments else open_detector(start, str(weights)))[0]
    except UserError as error:
        return Examples(f"What it finds can't be shown: {error.message}.")
    runtime = start_runtime(devices=1, precision=precision, threads=threads)
    return examples_of(whole, runtime.place(network), runtime.fabric)


def examples_of(whole: WholeRun, network: Network, fabric: Fabric) -> Examples:
    """What a fine-tuned network finds on a few images of its run, held-out ones where there are any."""
    if isinstance(network, Segmenter):
        try:
            tried = _tried_on(whole.config, load_mask_labels)
            images = segmentation_images(whole.config, network, fabric, Shown(*tried))
        except UserError as error:
            return Examples(f"What it finds can't be shown any more: {error.message}.")
        return Examples(tried[0], whole.config["classes"], images)
    return _detections(whole, cast(Detector, network), fabric)


def _detections(whole: WholeRun, detector: Detector, fabric: Fabric) -> Examples:
    try:
        words, labels, records = _tried_on(whole.config, load_labels)
        category_ids = match_categories(whole.config["classes"], labels)
        readable = list(_readable(records, detector.has_masks))
    except UserError as error:
        return Examples(f"What it finds can't be shown any more: {error.message}.")
    # A detector numbers its classes as its training labels do, which other label files may not.
    places = torch.tensor([labels.category_ids.index(number) for number in category_ids])
    images: list[Example] = []
    originals = {sample.image_id: (sample, truth) for sample, truth in readable}
    size = whole.config["options"]["image_size"]
    with torch.no_grad():
        for shown, found in detect(detector, (resize_sample(s, size) for s, _ in readable), fabric):
            sample, truth = originals[shown.image_id]
            found |= {name: found[name].float() for name in ("boxes", "scores")} | {"labels": places[found["labels"]]}
            images.append(Example(Path(sample.path).name, sample.image, truth, found))
    if not images:
        return Examples(f"{words} None of those that were chosen can be read.")
    return Examples(words, labels.classes, images)


def _tried_on(config: Mapping[str, Any], load: Callable[..., Any]) -> tuple[str, Any, list[Any]]:
    """Where to take images from, in words, with the labels, as `load` reads them, and the images taken.

    Raises: UserError when files are gone or have changed.
    """
    if config["val_data"] is not None:
        labels = _as_it_was(config, "val_data", load)
        return "Held-out images, evenly spaced over their label file.", labels, _spread(labels.records)
    labels = _as_it_was(config, "data", load)
    used = labelled_subset(labels, *(config["fraction"][name] for name in ("fraction", "scheme", "seed")))
    if used.hash != config["fraction"]["hash"]:
        raise UserError("this version of selfdet draws other images as the labelled fraction")
    chosen = set(used.image_ids)
    others = [record for record in labels.records if record.image_id not in chosen]
    if others:
        return "Images that are labelled but were not among those that were learned from.", labels, _spread(others)
    words = (
        "No images were held out, so these are the ones it learned from: it will do worse on others. With --val-data "
        "images that it has not seen are shown."
    )
    return words, labels, _spread(labels.records)


def _as_it_was(config: Mapping[str, Any], name: str, load: Callable[..., Any]) -> Any:
    labels = load(config[name], config["images"])
    if labels.hash != config[f"{name}_hash"]:
        raise UserError(f"{labels.file} has changed since")
    return labels


def _spread(records: list[Any]) -> list[Any]:
    return [records[place] for place in spread(len(records), SHOWN)]


def _readable(records: list[ImageRecord], with_masks: bool) -> Iterator[tuple[Sample, dict[str, Any]]]:
    """Images with what is labelled in them; masks as run lengths, as those of large images fill the memory."""
    for record in records:
        try:
            sample = read_sample(record, with_masks)
        except UnreadableImage:
            continue
        masks = {} if sample.masks is None else {"masks": encode_masks(sample.masks.as_subclass(Tensor))}
        yield replace(sample, masks=None), {"boxes": sample.boxes, "labels": sample.labels, **masks}
