"""What the settings in a file of OpenMMLab's programs say of its backbone, and its tensors don't: which pixels it
takes, where its strides are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from selfdet.data.pixels import IMAGENET_MEAN, IMAGENET_STD
from selfdet.errors import UserError

IS = r"['\"]?\s*[=:]\s*"  # between a setting's name and its value, in Python or JSON
NUMBER = r"\s*([\d.]+)\s*"
THREE = rf"{IS}[\[(]{NUMBER},{NUMBER},{NUMBER},?\s*[\])]"
CAFFE = rf"\bstyle{IS}['\"]caffe"
DILATED = rf"\bdilations{IS}[\[(](?!\s*1\s*,\s*1\s*,\s*1\s*,\s*1\b)\s*\d"
Triple = tuple[float, ...]
MEAN, STD = (tuple(255 * value for value in each) for each in (IMAGENET_MEAN, IMAGENET_STD))
# What each of `--pixels` is, as mean, deviation and whether red is first.
KINDS: dict[str, tuple[Triple, Triple, bool]] = {
    "rgb": (MEAN, STD, True),
    "bgr": (MEAN[::-1], STD[::-1], False),
    "caffe": (MEAN[::-1], (1.0, 1.0, 1.0), False),
}
NOT_ALIKE = 0.02  # of 255, and more than numbers written with two digits are off


def settings_text(content: Mapping[str, Any]) -> str:
    """The settings that a file has of its training, in Python or JSON, in one line; empty where it has none."""
    meta = content.get("meta")
    texts = [meta.get(name) for name in ("config", "cfg")] if isinstance(meta, Mapping) else []
    return in_one_line("\n".join(each for each in texts if isinstance(each, str)))


def in_one_line(text: str) -> str:
    """Settings without line breaks, and without what mmengine has before them: a comma behind the last of a list."""
    text = re.sub(r"\s+", " ", text)
    return re.sub(r",? (?=[\])}])", "", re.sub(r"(?<=[\[({]) ", "", text))


def check_settings(path: Path, text: str, names: Iterable[str], pixels: str | None) -> None:
    """Raises: UserError where settings say that a backbone of these names is another than torchvision's, or takes other
    pixels than `pixels` (rgb if None)."""
    if re.search(DILATED, text):
        raise UserError(f"{path}: by its settings (dilations) its last stages are dilated", "Use weights without")
    caffe = re.search(CAFFE, text) is not None
    if caffe and any(re.search(r"layer1\.0\.conv3\.weight$", name) for name in names):
        raise UserError(
            f"{path}: by its settings (style='caffe') its strides are in the 1×1 convolutions, torchvision's in the "
            "3×3: the same weights are another network",
            "Use weights that were trained with style='pytorch'",
        )
    told = _told(path, text, pixels) or ("caffe" if caffe else None)
    if told is not None and told != (pixels or "rgb"):
        words = {
            "rgb": "red first, by ImageNet's mean and deviation",
            "bgr": "blue first, by ImageNet's mean and deviation",
            "caffe": "blue first in 0…255, with ImageNet's mean taken off",
        }
        raise UserError(
            f"{path}: by its settings its network takes pixels {words[told]}",
            f"{'Add' if pixels is None else 'Use'} --pixels {told}",
        )


def _told(path: Path, text: str, pixels: str | None) -> str | None:
    """Which of `--pixels` the settings say; None where they say nothing, or several, of which `pixels` was chosen.

    Raises: UserError for a normalisation that is none of them.
    """
    means, stds = (_triples(text, name) for name in ("mean", "std"))
    if not means or not stds:
        return None
    first = {word.lower() == "true" for word in re.findall(rf"\b(?:bgr_)?to_rgb{IS}(True|False|true|false)", text)}
    if len(means) > 1 or len(stds) > 1 or len(first) > 1:
        if pixels is not None:
            return None
        raise UserError(f"{path}: its settings name several normalisations of pixels", "Say which with --pixels")
    mean, std = means.pop(), stds.pop()
    red = first.pop() if first else _alike(mean, MEAN)
    for kind, (own_mean, own_std, own_red) in KINDS.items():
        if _alike(mean, own_mean) and _alike(std, own_std) and red == own_red:
            return kind
    raise UserError(
        f"{path}: by its settings its network takes pixels with {'red' if red else 'blue'} first, of the mean "
        f"{list(mean)} and the deviation {list(std)}, which no --pixels is",
        "Use weights of a network for ImageNet's mean",
    )


def _triples(text: str, name: str) -> set[Triple]:
    """Values of a setting, of pixels in 0…255; those of pixels in 0…1 become such."""
    found = {tuple(map(float, each)) for each in re.findall(rf"\b{name}{THREE}", text)}
    return {tuple(255 * value for value in each) if max(each) < 1 else each for each in found}


def _alike(one: Triple, other: Triple) -> bool:
    return all(abs(a - b) <= max(NOT_ALIKE, 0.001 * abs(b)) for a, b in zip(one, other))
