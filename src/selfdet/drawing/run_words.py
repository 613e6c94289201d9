"""A training stage in sentences: what it does, and what its figures say."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from selfdet.drawing.run_stages import StageRun
from selfdet.training.box_health import box_words
from selfdet.training.health import words

# A share of the time waiting for images beyond which more workers would help.
LONG_WAIT = 0.2
# A drop of AP from its best that is worth a word.
FELL = 0.01


def purpose(stage: StageRun) -> str:
    """What the stage does, for somebody who does not know the method."""
    method = stage.config.get("method")
    views = (
        "shows the network two views of one image, cropped and coloured differently, and lets it find the one in the"
    )
    if method == "densecl":
        return f"DenseCL {views} other among many, as a whole and place by place. No labels are used."
    if method == "moco":
        return f"MoCo v2 {views} other among many. No labels are used."
    if method == "simclr":
        return f"SimCLR {views} other among those of its batch. No labels are used."
    if method == "aligndet":
        trained = stage.config.get("method_options", {}).get("train_backbone")
        leaves = "trains the backbone on" if trained else "leaves the backbone as it is"
        return (
            f"AlignDet {leaves}. The rest of the detector, neck and head, sees two views of an image with boxes that "
            "may hold objects, learns which place shows which of them, and to draw the boxes. No labels are used."
        )
    return ""


def health(stage: StageRun) -> list[str]:
    """What the stage's figures show, with advice where something is wrong."""
    found: list[str] = []
    try:
        if stage.config.get("method") in ("densecl", "moco", "simclr"):
            found += words(stage.rows, stage.config["method_options"].get("queue_length"))
        elif stage.config.get("method") == "aligndet":
            found += box_words(stage.rows)
        elif stage.kind == "finetune":
            found += _supervised_words(stage)
    except KeyError:
        found.append("The figures are those of another version of selfdet, whose meaning this one can't tell.")
    return [*found, *_speed_words(stage)]


def _supervised_words(stage: StageRun) -> Iterator[str]:
    losses = [row for row in stage.rows if "loss" in row]
    if len(losses) > 1:
        yield f"The loss went from {losses[0]['loss']:.2f} to {losses[-1]['loss']:.2f}."
    score = "mIoU" if stage.config.get("task") == "segmentation" else "AP"
    scores = [(row[score], row["step"]) for row in stage.rows if row.get(score) is not None]
    if not scores:
        yield f"{score} was not measured during training: with --val-data it is, or measure it with selfdet evaluate."
        return
    last, best = scores[-1], max(scores)
    yield f"{score} on held-out images went from {100 * scores[0][0]:.1f} % to {100 * last[0]:.1f} %."
    if masks := [row["mask"]["AP"] for row in stage.rows if row.get("mask", {}).get("AP") is not None]:
        yield f"AP of masks went from {100 * masks[0]:.1f} % to {100 * masks[-1]:.1f} %."
    if best[0] - last[0] > FELL:
        yield (
            f"It was best after step {best[1]:,} with {100 * best[0]:.1f} %, which best.pt keeps: the labels are few "
            "for so many steps, or the learning rate is high."
        )
    elif len(scores) > 2 and last[0] - scores[-2][0] > FELL:
        yield "It was still rising at the end: more steps may help."


def _speed_words(stage: StageRun) -> Iterator[str]:
    rates = [row["images_per_second"] for row in stage.timing if "images_per_second" in row]
    waits = [row["data_wait"] for row in stage.timing if "data_wait" in row]
    if rates and waits:
        slow = "; more --workers may help" if median(waits) > LONG_WAIT else ""
        yield f"It took {median(rates):.3g} images a second and waited for them {median(waits):.0%} of the time{slow}."
