"""A DETR as a folder that transformers loads by itself: configuration, weights, image processor, class names."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor
from torchvision import tv_tensors

from selfdet.data.labelled import resize_sample
from selfdet.data.sample import plain_sample
from selfdet.detectors.queries import QueryDetector
from selfdet.errors import UserError
from selfdet.interchange.companions.texts import text_of
from selfdet.interchange.export_check import (
    MAP_TOLERANCE,
    STRANGER,
    check_images,
    compare_detections,
    run_stranger,
)
from selfdet.interchange.export_words import differences
from selfdet.interchange.outgoing import Outgoing, Written
from selfdet.interchange.transformers_names import BODY, flat_name
from selfdet.models.backbones import evaluating
from selfdet.training.rundir import write_text

PROGRAM, DESCRIPTION = "detect.py", "detector.json"
PROCESSORS = {
    "detr": "DetrImageProcessor",
    "deformable_detr": "DeformableDetrImageProcessor",
    "rtdetr": "RTDetrImageProcessor",
}
OTHERWISE = "Use --to onnx or --to torch-export, which take any backbone"

DETECT = """
    net, processor, settings = exported.load()
    for row, name in enumerate(sorted(given)):
        for key, value in exported.find(given[name], net, processor, settings, threshold=0.0).items():
            found[f"{row}.{key}"] = value.contiguous()
save_file(found, outputs)
"""


def export_transformers(folder: Path, given: Outgoing) -> Written:
    """Write a DETR of any kind into `folder`, and check that transformers finds the same there.

    Raises: UserError for another detector and for a backbone that transformers does not have; ExportMismatchError.
    """
    key = given.note["detector"]
    if key not in PROCESSORS:
        raise UserError(
            f"--init {given.source} is a {key}, which transformers does not have; it has {', '.join(PROCESSORS)}",
            "Use --to torchvision, or --part backbone for a ResNet's",
        )
    write_transformers(folder, given.network, given.note)
    figures = check_transformers(folder, given.network, check_images(given.note["image_size"]))
    return Written(figures, f"loaded in transformers, {differences(figures)}")


def write_transformers(folder: Path, detector: QueryDetector, note: Mapping[str, Any]) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json, detector.json and detect.py into `folder`.

    `note` is the weights file's own, as `load_detector` returns it.
    Raises: UserError when transformers cannot express the backbone.
    """
    import transformers

    net = _in_transformers(detector, note["classes"])
    transformers.utils.logging.disable_progress_bar()
    net.save_pretrained(folder)
    size, step = note["image_size"], detector.size_divisor
    whole = -(-size // step) * step
    # RT-DETR knows no mask: whole images, a little distorted, are what its post-processing puts into place by itself.
    sides = {"shortest_edge": size, "longest_edge": size} if detector.masked else {"height": whole, "width": whole}
    kind = getattr(transformers, PROCESSORS[detector.key])
    mean, std = list(detector.backbone.mean), list(detector.backbone.std)
    kind(size=sides, do_normalize=True, image_mean=mean, image_std=std, do_pad=detector.masked).save_pretrained(folder)
    config = detector.config()
    described = {
        **{name: config[name] for name in ("detector", "strides", "size_divisible", "mean", "std")},
        "score_threshold": config["options"]["score_threshold"],
        "detections": most(detector),
        "backbone": {"library": detector.backbone.library, "name": detector.backbone.library_name},
        "image_size": size,
        "classes": list(note["classes"]),
        "category_ids": list(note["category_ids"]),
        "masked": detector.masked,
        "options": config["options"],
        "least_side": detector.padded_size(1, 1)[0],
        "post_process": {"top_k": most(detector)} if detector.key == "deformable_detr" else {},
        "made_with": {name: version(name) for name in ("selfdet", "torch", "torchvision", "timm", "transformers")},
    }
    write_text(folder / DESCRIPTION, json.dumps(described, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / PROGRAM, text_of("detect"))


def most(detector: QueryDetector) -> int:
    """Detections an image: what the detector has; transformers' RT-DETR finds no more than it has queries."""
    asked, queries = detector.options["detections"], detector.options["queries"]
    return int(min(asked, queries) if detector.key == "rtdetr" else asked)


def check_transformers(folder: Path, detector: QueryDetector, images: Sequence[Tensor]) -> dict[str, float]:
    """Compare what a folder's program finds in images (3, H, W) uint8, whatever the score, with the detector's own.

    Returns the number of "detections" compared, and the largest "box_difference" (px of the images) and
    "score_difference" among those that have a counterpart.
    Raises: ExportMismatchError when under 98 % have one, within 0.01 px.
    """
    answer = run_stranger(STRANGER + DETECT, folder / PROGRAM, {f"{row:04}": each for row, each in enumerate(images)})
    theirs = [{key: answer[f"{row}.{key}"] for key in ("boxes", "scores", "labels")} for row in range(len(images))]
    options, size = detector.options, detector.options["image_size"]
    detector.options = {**options, "score_threshold": 0.0, "detections": most(detector)}
    try:
        samples = [resize_sample(plain_sample(tv_tensors.Image(image)), size) for image in images]
        ours = [detector.predict([sample])[0] for sample in samples]
    finally:
        detector.options = options
    return compare_detections(ours, theirs)


def _in_transformers(detector: QueryDetector, classes: Sequence[str]) -> Any:
    """transformers' own network with the detector's weights, its backbone by timm.

    Raises: UserError when transformers cannot express the backbone.
    """
    import transformers

    name = detector.backbone.library_name
    if not timm.is_model(name):
        raise UserError(f"--to transformers: the backbone {detector.backbone.name} is none of timm's", OTHERWISE)
    features: Any = timm.create_model(name, features_only=True)
    config = copy.deepcopy(detector.net.config)
    # Frozen by timm, which knows norms that end in an activation; transformers would lose it.
    body: dict[str, Any] = {
        "backbone": name,
        "out_indices": list(features.feature_info.out_indices[-detector.levels :]),
    }
    config.backbone_config = transformers.TimmBackboneConfig(freeze_batch_norm_2d=detector.key != "rtdetr", **body)
    config.id2label = dict(enumerate(classes))
    config.label2id = {label: row for row, label in config.id2label.items()}
    net = type(detector.net)(config).eval()
    _fill(net, detector)
    _try_backbone(net, detector)
    return net


def _fill(net: Any, detector: QueryDetector) -> None:
    """Load the detector's weights into transformers' network, which names those of the backbone in its own way.

    Raises: UserError when they are not the same tensors.
    """
    wanted, state = net.state_dict(), dict(detector.net.state_dict())
    inside = {flat_name(name): name for name in wanted if name.startswith(BODY)}
    for name in [name for name in state if name.startswith(BODY)]:
        value, known = state.pop(name), inside.get(flat_name(name))
        if known is not None and wanted[known].shape == value.shape:
            state[known] = value
        elif not name.endswith("num_batches_tracked"):
            raise UserError(f"--to transformers: its {detector.backbone.name} has no tensor {name}", OTHERWISE)
    for name in wanted.keys() - state.keys():
        if not name.endswith("num_batches_tracked"):
            raise UserError(f"--to transformers: it wants a tensor {name}, which is not there", OTHERWISE)
        state[name] = wanted[name]
    net.load_state_dict(state)


@torch.no_grad()
def _try_backbone(net: Any, detector: QueryDetector) -> None:
    """Raises: UserError when transformers' backbone fails or has other maps than the detector's."""
    side = detector.options["image_size"]
    height, width = detector.padded_size(side, side * 3 // 4)
    images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    with evaluating(detector):
        ours = list(detector.body(images.to(next(detector.parameters()))).values())
    try:
        theirs = [each for each, _ in net.model.backbone(images, torch.ones(1, height, width))]
        same = all(
            one.shape == other.shape and bool((one - other).abs().max() <= MAP_TOLERANCE * one.abs().max())
            for one, other in zip(ours, theirs, strict=True)
        )
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--to transformers: it cannot run {detector.backbone.name} at {height} × {width} px ({reason})", OTHERWISE
        ) from error
    if not same:
        raise UserError(f"--to transformers: it has other maps of {detector.backbone.name}", OTHERWISE)
