"""The curves of a run, from its metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfdet.drawing.curves import plot_curves

Rows = Sequence[Mapping[str, Any]]

# Figures that others are held against: drawn as a level, not as a curve.
LEVELS = frozenset({"loss_chance", "match_chance", "rank_limit"})

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
            "loss_chance": "chance, log(K + 1)",
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
        {"feature_std": "images", "dense_feature_std": "cells"},
    ),
    (
        "match_accuracy",
        "Dense matches that hit the true cell",
        "share of cells",
        {"match_accuracy": "this run", "match_chance": "guessing"},
    ),
    ("match_error", "Distance of dense matches from the true point", "median, px of the view", {"match_error_px": ""}),
    ("ap", "Average precision on held-out images", "AP, 0…1", {"AP": "AP", "AP50": "AP50"}),
    ("learning_rate", "Learning rate", "learning rate", {"lr": ""}),
)


def plot_training(rows: Rows, folder: Path) -> list[Path]:
    """Write one chart for each kind of figure that the rows of metrics.jsonl hold; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for file, title, label, names in PICTURES:
        found = {name: points for name in names if (points := _points(rows, name))}
        series = {names[name]: points for name, points in found.items() if name not in LEVELS}
        levels = {names[name]: points[-1][1] for name, points in found.items() if name in LEVELS}
        if series:
            path = folder / f"{file}.png"
            plot_curves(series, path, title=title, x_label="optimiser step", y_label=label, hlines=levels)
            written.append(path)
    return written


def _points(rows: Rows, name: str) -> list[tuple[float, Any]]:
    return [(row["step"], row[name]) for row in rows if name in row]
