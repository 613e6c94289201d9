"""DETRs out of transformers' own folders: what its loader makes of one is what ours finds, or it is refused.

The library knows the names that its versions gave the tensors; here are only those of the backbone, which is ours.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from selfdet.detectors._transformers import library
from selfdet.detectors.base import Batch
from selfdet.detectors.queries import QueryDetector, pixel_mask
from selfdet.detectors.zoo import DETECTORS
from selfdet.errors import UserError, shown
from selfdet.interchange.architectures import State
from selfdet.interchange.imported import ImportedDetector, fill_detector, taken_detector
from selfdet.interchange.notes import check_note
from selfdet.interchange.starts import MODEL
from selfdet.interchange.transformers_names import BODY, flat_name
from selfdet.interchange.transformers_settings import (
    AGAIN,
    CONFIG,
    PROCESSOR,
    backbone_name,
    check_pixels,
    class_names,
    library_config,
    long_side,
    own_note,
    read_object,
    readable,
    told_kind,
)
from selfdet.models.backbones import build_backbone, build_unfilled, evaluating

# Settings that say nothing of what is found: of training, of names, of what the library returns.
ASIDE = re.compile(
    r"backbone|use_|freeze|.*(cost|coefficient|dropout|layerdrop|loss|noise|_alpha|_gamma)|num_(denoising|labels)|init|"
    r"(id2label|label2id|architectures|dtype|_name_or_path|transformers_version|problem_type|return_|output_|model_type|"
    r"chunk_size|tie_|disable_custom_kernels|two_stage_num|max_position|torch|is_encoder)"
)
TOLERANCE = 1e-3  # of logits, beside their largest value, and of boxes as shares of the image


def weights_in(folder: Path) -> Path:
    """The file of weights in a folder as transformers saves one. Raises: UserError where there is none."""
    file = folder / MODEL
    if not file.is_file():
        raise UserError(f"{folder} is a folder without {MODEL}", "Name a file, or such a folder of transformers")
    return file


def holds_detector(content: Mapping[str, Any]) -> bool:
    """Whether a file's tensors, of transformers, are of more than a backbone."""
    return any(str(name).startswith("model.decoder.") for name in content)


def import_transformers(
    file: Path,
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    image_size: int | None = None,
) -> ImportedDetector:
    """The DETR, Deformable DETR or RT-DETR in a folder of transformers, loaded by it, held against what it finds.

    `file`: its weights, which have been read and found whole, and beside which there are its settings. `name`: the
    backbone's, instead of the one they tell. `classes`: names of its classes instead of its own. `image_size`: the long
    side (px) that images will be resized to, instead of its processor's.

    Raises: UserError for another kind of network, settings that ours doesn't have, pixels that its backbone's library
    doesn't take; NotTakenError where not every tensor fits.
    """
    if not (file.parent / CONFIG).is_file():
        raise UserError(f"{file} has no {CONFIG} beside it, which says what network it is", AGAIN)
    settings, own = read_object(file.parent / CONFIG), own_note(file.parent)
    key, kind = told_kind(file.parent, settings)
    transformers = library(key)
    config = library_config(transformers, kind, settings, file.parent)
    name = name or backbone_name(file.parent, config.backbone_config, own)
    told = [str(config.id2label[each]) for each in sorted(config.id2label)]
    names, said = class_names(file, told, classes)
    size, detector = _own_detector(file.parent, key, config, name, names, own, image_size)
    theirs, state = _loaded(transformers, kind, file, config, detector)
    report = taken_detector(detector, state, False, str(file), True)
    fill_detector(detector, state)
    _check_same(theirs, detector, file)
    ids = own["category_ids"] if own.get("classes") == told and "category_ids" in own else range(len(names))
    return ImportedDetector(detector, names, size, report, said, category_ids=ids)


def _own_detector(
    folder: Path, key: str, config: Any, name: str, classes: list[str], own: Mapping[str, Any], image_size: int | None
) -> tuple[int, QueryDetector]:
    """The long side (px) of its images and our detector, without weights, of which the settings agree.

    Raises: UserError for settings that ours doesn't have, and for other pixels.
    """
    about = read_object(folder / PROCESSOR)
    size = own.get("image_size", long_side(about)) if image_size is None else image_size
    counts = {"queries": config.num_queries, "layers": config.decoder_layers}
    if key == "detr":
        counts["no_object"] = config.eos_coefficient
    if key == "rtdetr":
        counts["denoising"] = config.num_denoising
    known = inspect.signature(DETECTORS[key]).parameters
    options = {each: value for each, value in own.get("options", {}).items() if each in known}
    options |= {**counts, "image_size": size}
    check_note({"options": options, "classes": classes}, folder / CONFIG)
    with readable(folder / CONFIG):
        detector = build_unfilled(lambda: DETECTORS[key](len(classes), build_backbone(name), **options))
    assert isinstance(detector, QueryDetector)
    ours, theirs = detector.net.config.to_dict(), config.to_dict()
    apart = [each for each in ours if not ASIDE.match(each) and ours[each] != theirs.get(each)]
    if apart:
        told = ", ".join(f"{each} {shown(theirs.get(each))}, not {shown(ours[each])}" for each in apart[:3])
        raise UserError(f"{folder} is another network than ours: {told}", "Take one of the usual settings")
    check_pixels(folder, about, detector.backbone)
    return size, detector


def _loaded(transformers: Any, kind: str, file: Path, config: Any, detector: QueryDetector) -> tuple[Any, State]:
    """transformers' network with the file's tensors, and those that were there by our names."""
    transformers.utils.logging.disable_progress_bar()
    with _quiet(transformers), readable(file):
        net, told = getattr(transformers, kind).from_pretrained(
            file.parent,
            config=copy.deepcopy(config),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )
    absent = {*told["missing_keys"], *(each[0] for each in told["mismatched_keys"])}
    names = {flat_name(each): each for each in detector.net.state_dict() if each.startswith(BODY)}
    state: State = {}
    for each, value in net.state_dict().items():
        if each not in absent:
            state[names.get(flat_name(each), each) if each.startswith(BODY) else each] = value
    # What the library knew nothing to do with: the report counts it, and it is refused.
    return net.eval(), {**state, **{each: torch.empty(1, device="meta") for each in told["unexpected_keys"]}}


@torch.no_grad()
def _check_same(theirs: Any, detector: QueryDetector, file: Path) -> None:
    """Raises: UserError where our network does not find in an image of noise what theirs does."""
    height, width = detector.padded_size(96, 128)
    noise = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    batch = Batch(noise, [(height, width)], [{"boxes": torch.zeros(0, 4)}])
    with evaluating(detector):
        ours = detector.queries(detector.features(batch), pixel_mask(batch))
    found = theirs(pixel_values=noise)
    logits = float((found.logits - ours.logits[-1]).abs().max() / found.logits.abs().max().clamp_min(1))
    boxes = float((found.pred_boxes - ours.boxes[-1]).abs().max())
    if not max(logits, boxes) <= TOLERANCE:
        raise UserError(
            f"{file}: ours finds something else than transformers does (logits differ by {logits:.2g} of the largest, "
            f"boxes by {boxes:.2g} of the image)",
            "Take one over a usual backbone",
        )


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """The library's own words about tensors that don't fit: the report has them."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)
