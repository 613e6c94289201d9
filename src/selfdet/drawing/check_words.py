"""What a check found, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selfdet.data.box_faults import BOX_FAULTS
from selfdet.data.findings import Findings
from selfdet.data.inspection import IMAGE_FAULTS
from selfdet.training.log import plural

NAMED = 3  # files that a line names
LISTED = 12  # classes that a line names
RARE = 10  # boxes of a class, below which it is called rare
MANY = 0.05  # share of boxes under the finest cell from which a larger image is advised
REFUSED = 0.05  # share of unreadable images above which training stops


def summary(findings: Findings) -> Iterator[str]:
    """The lines for stderr: how much there is, each fault with its first files and what becomes of it, advice."""
    counts = findings.counts
    yield headline(counts)
    for fault, found in findings.images.items():
        if found:
            files = [f"{file} ({detail})" for file, detail in found]
            yield f"{name(fault)}: {plural(len(found), 'image')}: {first(files)}"
            yield f"  {IMAGE_FAULTS[fault]}"
    for fault, meaning in BOX_FAULTS.items():
        faulty = [each for each in findings.boxes if each.fault == fault]
        if faulty:
            entries = [f"annotation {each.annotation} of {each.file} ({each.detail})" for each in faulty]
            yield f"{name(fault)}: {plural(len(faulty), 'box', 'boxes')}: {first(entries)}"
            yield f"  {meaning}"
    yield from advice(counts)


def headline(counts: Mapping[str, Any]) -> str:
    """How much was looked at, in one line."""
    parts = [plural(counts["images"], "image")]
    if "boxes" in counts:
        labelled = f"{plural(counts['boxes'], 'box', 'boxes')} of {plural(len(counts['classes']), 'class', 'classes')}"
        parts.append(f"{labelled} in {plural(counts['labelled_images'], 'labelled image')}")
    odd = sum(counts["image_faults"].values())
    faulty = sum(counts["box_faults"].values())
    parts.append(f"{plural(odd, 'finding')} in images, {faulty:,} in boxes" if odd + faulty else "nothing is odd")
    return "; ".join(parts)


def advice(counts: Mapping[str, Any]) -> Iterator[str]:
    """What follows from the counts, a sentence or two each."""
    if counts["left_out"]:
        share = counts["left_out"] / counts["images"]
        stops = " More than 5 %, and training stops." if counts["left_out"] > max(1, REFUSED * counts["images"]) else ""
        yield f"{plural(counts['left_out'], 'image')} can't be trained on, {share:.1%} of all.{stops}"
    if counts["train_val_duplicates"]:
        number = plural(counts["train_val_duplicates"], "validation image")
        yield f"{number} seen in training too: scores are too good by that. Take them out of the training labels."
    if counts.get("labels_refused"):
        yield f"training refuses these labels: {counts['labels_refused']}"
    if "boxes" not in counts:
        return
    classes = counts["classes"]
    common = sorted(classes.items(), key=lambda each: -each[1])
    yield f"boxes by class: {first([f'{kind} {number:,}' for kind, number in common], LISTED)}"
    if none := [kind for kind, number in classes.items() if not number]:
        yield f"classes without a box: {first(none, LISTED)}. Nothing can be learned of them, nor measured."
    if rare := [kind for kind, number in classes.items() if 0 < number < RARE]:
        number = plural(len(rare), "class has", "classes have")
        yield f"{number} fewer than {RARE} boxes: {first(rare, LISTED)}. Label more of them before anything else."
    if counts["crowds"]:
        yield f"crowds and difficult objects, ignored in training: {counts['crowds']:,}"
    if counts["images_without_boxes"]:
        yield (
            f"{plural(counts['images_without_boxes'], 'labelled image')} without boxes: right if they show nothing, "
            "for a detector learns from them; else objects there are taught as background."
        )
    if counts["unlabelled_images"]:
        yield f"{plural(counts['unlabelled_images'], 'image')} without labels: pre-training takes them."
    if "levels" in counts:
        yield from level_words(counts["levels"])


def level_words(found: Mapping[str, Any]) -> Iterator[str]:
    """How the boxes' sizes suit the detector's levels."""
    detector, size, total = found["detector"], found["image_size"], found["boxes"]
    if not total:
        return
    shares = ", ".join(f"stride {level['stride']} {level['boxes'] / total:.0%}" for level in found["levels"])
    yield f"boxes by level of {detector} at --image-size {size}: {shares}"
    under = found["under_finest"] / total
    finest = found["levels"][0]["stride"]
    yield f"{under:.1%} of the boxes are narrower or lower than a cell of the finest level, {finest} px"
    if under > MANY:
        instead = ", or an R-CNN (--detector faster_rcnn), whose finest cells have 4 px" if finest > 4 else ""
        twice = found["under_finest_at_twice"] / total
        yield f"  These are hard to find. --image-size {2 * size} would leave {twice:.1%}{instead}."
    empty = [str(level["stride"]) for level in found["levels"] if not level["boxes"]]
    if empty:
        yield f"  No box falls on the levels of stride {', '.join(empty)}: they see background alone, which is no harm."


def first(texts: Sequence[str], number: int = NAMED) -> str:
    """The first few, and that there are more."""
    return ", ".join(texts[:number]) + (", …" if len(texts) > number else "")


def name(fault: str) -> str:
    """A fault as a person writes it."""
    return {"sixteen_bit": "16 bits", "cmyk": "CMYK", "rotated": "rotated by EXIF"}.get(fault, fault.replace("_", " "))
