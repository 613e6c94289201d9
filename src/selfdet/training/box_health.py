"""The figures of a box-domain run in words: do proposals get places, does the contrast leave chance, do boxes fit?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Below these shares what is missing is more than what is there.
FEW_PLACED = 0.5
FEW_SHARED = 0.7
# A contrast that has come less than this share of the way from chance to its floor has hardly begun.
AT_CHANCE = 0.03
# Beyond this share of distances at 0 boxes can hardly learn.
MANY_ZEROS = 0.3
COLLAPSED_STD = 0.1
# An objectness loss that has been so many times what it was at first has a classifier that runs away.
RUNAWAY = 1.5
# The mean IoU of boxes with their proposals must have risen by so much to be called better: batches differ.
BETTER_IOU = 0.02


def box_words(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in plain sentences what the rows of a detector stage's metrics show, with advice where something is wrong.

    `rows`: of metrics.jsonl, in order; each holds losses and figures of AlignDet's `health`.
    """
    last: dict[str, Any] = {}
    for row in rows:
        last |= row
    if "proposals_per_image" not in last:
        return []
    return [*_place_words(last), *_contrast_words(last), *_box_words(rows, last), *_objectness_words(rows)]


def _place_words(last: Mapping[str, Any]) -> Iterator[str]:
    proposals, placed, places = (last[f"{name}_per_image"] for name in ("proposals", "ids", "positives"))
    if not placed:
        yield (
            f"Of {proposals:.1f} proposals an image none got a place in the last batch, so nothing could be compared: "
            "look at the proposals with --preview, and check that --boxes belongs to these images."
        )
        return
    sentence = (
        f"Of {proposals:.1f} proposals an image {placed:.1f} got places, {places:.1f} places an image and "
        f"{last['positives_per_id']:.1f} a proposal."
    )
    if placed < FEW_PLACED * proposals:
        sentence += (
            " Most got none: they are smaller than the finest cells or hide each other. Take a larger --image-size, "
            "or proposals that are larger or fewer."
        )
    yield sentence
    shared = last["ids_in_both"]
    sentence = f"{shared:.0%} of those with places have some in the other view too."
    if shared < FEW_SHARED:
        sentence += " The others are compared with themselves only: take views that differ less in size."
    yield sentence


def _contrast_words(last: Mapping[str, Any]) -> Iterator[str]:
    if "contrast_chance" in last and "contrast" in last:
        loss, chance, floor = last["contrast"], last["contrast_chance"], last["contrast_floor"]
        way = (chance - loss) / (chance - floor)
        sentence = f"The contrast is {loss:.2f}, between {chance:.2f} of pure chance and a floor near {floor:.2f}"
        if way < AT_CHANCE:
            yield (
                f"{sentence}. That is chance, nothing has been learned: train for longer, "
                "or lower the learning rate if it never fell."
            )
        else:
            yield f"{sentence}: {min(way, 1):.0%} of the way."
    if last.get("feature_std", 1.0) < COLLAPSED_STD:
        yield (
            f"The embeddings' spread is {last['feature_std']:.2f} (1 = even, 0 = none): all places look alike. "
            "Lower the learning rate."
        )


def _box_words(rows: Sequence[Mapping[str, Any]], last: Mapping[str, Any]) -> Iterator[str]:
    found = [row["box_iou"] for row in rows if "box_iou" in row]
    if found:
        sentence = f"The detector's boxes overlap their proposals with a mean IoU of {found[-1]:.2f}"
        if len(found) > 1:
            sentence += f", {found[0]:.2f} at the first look"
            if found[-1] < found[0] + BETTER_IOU:
                sentence += "; they have not become better: train for longer"
        yield f"{sentence}."
    zeros = last.get("zero_distances", 0.0)
    if zeros > MANY_ZEROS:
        yield (
            f"{zeros:.0%} of the distances to the sides of boxes are 0, where their gradient is 0 too: lower the "
            "learning rate or give it a longer warm-up."
        )


def _objectness_words(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    losses = [row["objectness"] for row in rows if "objectness" in row]
    if losses and max(losses) > RUNAWAY * losses[0]:
        yield (
            f"The objectness loss began at {losses[0]:.2f} and rose to {max(losses):.2f}: the learning rate is too "
            "high for this detector. Lower it, here and in fine-tuning."
        )
