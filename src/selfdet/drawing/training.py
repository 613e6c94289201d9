"""The curves of a run, from its metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfdet.drawing.curves import plot_curves

Rows = Sequence[Mapping[str, Any]]

# Figures that others are held against: drawn as a level, not as a curve.
LEVELS = frozenset({"loss_chance", "match_chance", "rank_limit", "contrast_chance", "contrast_floor"})

# One picture a line: file, title, y label, and what each figure is called in it.
PICTURES: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    (
        "loss",
        "Loss",
        "loss (mean since the last row)",
        {
            "loss": "total",
            "global": "global",
            "dense": "dense",
            "classification": "classification",
            "bbox_regression": "box regression",
            "bbox_ctrness": "centerness",
            "contrast": "contrast",
            "objectness": "objectness",
            "loss_classifier": "classification",
            "loss_box_reg": "box regression",
            "loss_mask": "masks",
            "loss_objectness": "objectness of the RPN",
            "loss_rpn_box_reg": "box regression of the RPN",
            "loss_chance": "chance",
        },
    ),
    (
        "contrast",
        "Contrast of objects, between chance and its floor",
        "loss (mean since the last row)",
        {"contrast": "contrast", "contrast_chance": "chance", "contrast_floor": "floor"},
    ),
    ("box_iou", "Overlap of the detector's boxes with their proposals", "mean IoU", {"box_iou": ""}),
    (
        "places",
        "Proposals and their places in the detector's grid",
        "number an image",
        {
            "positives_per_image": "places",
            "proposals_per_image": "proposals",
            "ids_per_image": "proposals with a place",
        },
    ),
    (
        "shares",
        "What was there to learn from",
        "share, 0…1",
        {
            "ids_in_both": "proposals with places in both views",
            "zero_distances": "distances of 0 (no gradient)",
            "rpn_recall": "proposals met by the RPN",
        },
    ),
    (
        "similarity",
        "Similarity of query and key",
        "cosine similarity",
        {
            "pos_similarity": "positive pairs",
            "neg_similarity": "negatives",
            "dense_pos_similarity": "positive cells",
            "dense_neg_similarity": "negatives of cells",
        },
    ),
    (
        "spread",
        "Dimensions that the embeddings use",
        "effective rank",
        {"effective_rank": "effective rank", "rank_limit": "at most"},
    ),
    (
        "deviation",
        "Spread of the embeddings",
        "standard deviation (1 = even, 0 = collapsed)",
        {"feature_std": "embeddings", "dense_feature_std": "embeddings of cells"},
    ),
    (
        "match_accuracy",
        "Dense matches that hit the true cell",
        "share of cells",
        {"match_accuracy": "this run", "match_chance": "guessing"},
    ),
    ("match_error", "Distance of dense matches from the true point", "median, px of the view", {"match_error_px": ""}),
    ("ap", "Average precision on held-out images", "AP, 0…1", {"AP": "AP", "AP50": "AP50", "mask.AP": "AP of masks"}),
    (
        "miou",
        "Classes of pixels on held-out images",
        "share, 0…1",
        {"mIoU": "mIoU", "pixel_accuracy": "right pixels", "batch_accuracy": "the same in training"},
    ),
    ("learning_rate", "Learning rate", "learning rate", {"lr": ""}),
)


def plot_training(rows: Rows, folder: Path) -> list[Path]:
    """Write one chart for each kind of figure that the rows of metrics.jsonl hold; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for file, title, label, names in PICTURES:
        found = {name: points for name in names if (points := _points(rows, name))}
        own = [name for name in found if name not in LEVELS]
        if file == "loss" and len(own) == 2 and found[own[0]] == found[own[1]]:
            del found["loss"]  # of a method with one loss, which would hide it
        series = {names[name]: points for name, points in found.items() if name not in LEVELS}
        levels = {names[name]: points[-1][1] for name, points in found.items() if name in LEVELS}
        if series:
            path = folder / f"{file}.png"
            plot_curves(series, path, title=title, x_label="optimiser step", y_label=label, hlines=levels)
            written.append(path)
    return written


def _points(rows: Rows, name: str) -> list[tuple[float, Any]]:
    *groups, last = name.split(".")  # figures of masks stand in a group of their own
    found = []
    for row in rows:
        inner: Any = row
        for group in groups:
            inner = inner.get(group, {})
        if last in inner:
            found.append((row["step"], inner[last]))
    return found
