"""results.csv and results.json of a comparison: its cells, and all figures that follow from them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfdet.evaluation.choice import ASKED, Answer, Choice, answer, choose, level, sureness
from selfdet.evaluation.comparison import (
    KEYS,
    MISS_KEYS,
    Amount,
    Comparison,
    amounts,
    classes,
    difference,
    rates,
    table,
)
from selfdet.evaluation.differences import Difference, verdict
from selfdet.evaluation.savings import equivalents, reaches
from selfdet.training.rundir import write_text

FACTS = (
    "experiment",
    "kind",
    "start",
    "init",
    "detector",
    "fraction",
    "shots",
    "labels",
    "boxes",
    "seed",
    "lr",
    "steps",
)
LAST = ("images", "seconds", "command")


def write_csv(out: Path, comparison: Comparison) -> None:
    """Write a line for every finished cell; scores in 0…1, empty where there is none."""
    names = classes(comparison)
    masks = [f"mask_{key}" for key in KEYS] if len(comparison.kinds) > 1 else []
    missed = comparison.miss_keys
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    keys = comparison.keys
    writer.writerow([*FACTS, *keys, *masks, *missed, *(f"{comparison.class_score} of {name}" for name in names), *LAST])
    for cell in comparison.cells:
        own = [cell.get(key) for key in (*FACTS, *keys)]
        own += [cell.get("mask", {}).get(key.removeprefix("mask_")) for key in masks]
        own += [cell.get("miss_rate", {}).get(MISS_KEYS[key]) for key in missed]
        own += [cell.get("per_class", {}).get(name) for name in names]
        writer.writerow([*own, *(cell.get(key) for key in LAST)])
    write_text(out, file.getvalue())


def write_json(out: Path, found: Mapping[str, Any]) -> None:
    """Write what `results` gave."""
    write_text(out, json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def results(comparison: Comparison, names: Mapping[str, str]) -> dict[str, Any]:
    """All figures of a comparison, as docs/reference.md has them; AP in 0…1, None for what is not known."""
    own, others = amounts(comparison), list(comparison.starts)[1:]
    return {
        "planned": comparison.planned,
        "finished": len(comparison.finetuned),
        "starts": dict(comparison.starts),
        "settings": dict(comparison.settings),
        "about": dict(comparison.words),
        "answers": [_answer(answer(comparison, asked), names) for asked in ASKED],
        "choices": [
            {"of": of, **_amount(amount), **_choice(choice, names)}
            for of in comparison.kinds
            for amount in own
            if (choice := choose(comparison, amount, of)) is not None
        ],
        "table": [
            {
                "start": row.start,
                "of": row.of,
                **_amount(row.amount),
                "n": row.n,
                **{key: None if each is None else {"mean": each[0], "sd": each[1]} for key, each in row.values.items()},
            }
            for row in table(comparison)
        ],
        "differences": [
            {
                "start": start,
                "of": of,
                **_amount(amount),
                **_difference(found),
                "verdict": verdict(found, amount.words, comparison.score),
            }
            for of in comparison.kinds
            for amount in own
            for start in others
            for found in [difference(comparison, start, amount, of)]
        ],
        "miss_rates": [
            {
                "start": start,
                "of": MISS_KEYS[key],
                **_amount(amount),
                **_difference(found),
                "verdict": verdict(found, amount.words, "MR⁻²"),
            }
            for key in comparison.miss_keys
            for amount in own
            for start in others
            for found in [difference(comparison, start, amount, key=key)]
        ],
        "per_class": [
            {"start": start, "class": name, **_amount(amount), **_difference(found)}
            for amount in own
            for start in others
            for name in classes(comparison)
            if (found := difference(comparison, start, amount, name=name)) is not None
        ],
        "worth": [
            {
                "start": each.start,
                **_amount(each.amount),
                "n": each.difference.n,
                "found": each.difference.found,
                "equal": _finite(each.labels),
                "low": _finite(each.low),
                "high": _finite(each.high),
                "words": each.words(each.labels),
            }
            for each in equivalents(comparison)
        ],
        "steps": [
            {
                "start": each.start,
                **_amount(each.amount),
                comparison.score: each.target,
                "base_steps": each.base_steps,
                "steps": each.steps,
                "by_seed": list(each.by_seed),
            }
            for each in reaches(comparison)
        ],
        "rates": [
            {
                "start": each.start,
                "used": [{**_amount(amount), "lr": list(lr)} for amount, lr in each.used],
                "tried": [{"lr": lr, "multiple": multiple, comparison.score: ap} for lr, multiple, ap in each.tried],
                "at_edge": each.at_edge,
            }
            for each in rates(comparison)
        ],
        "cells": [dict(cell) for cell in comparison.cells],
    }


def _amount(amount: Amount) -> dict[str, Any]:
    return {amount.kind: amount.value, "labels": amount.images, "boxes": amount.boxes}


def _difference(found: Difference | None) -> dict[str, Any]:
    """Bounds are an interval from five seeds on, of fewer the range, and there are none of one."""
    if found is None:
        return {"mean": None, "low": None, "high": None, "n": 0, "bounds": None, "found": False}
    kind = "95 %" if found.is_interval else "range" if found.n > 1 else None
    return {**asdict(found), "bounds": kind, "found": found.found}


def _choice(choice: Choice, names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "best": choice.best,
        "use": choice.use,
        "beaten": choice.beaten,
        "level": level(choice),
        "words": sureness(choice, names),
        "ahead": {start: _difference(found) for start, found in choice.behind.items()},
    }


def _answer(each: Answer, names: Mapping[str, str]) -> dict[str, Any]:
    """`measured`: the numbers of images that it rests on; `nearest`: outside of what was measured, the nearest."""
    return {
        "asked": each.asked,
        "use": each.use,
        "measured": [choice.amount.images for choice in each.choices],
        "levels": [level(choice) for choice in each.choices],
        "nearest": None if each.outside is None else each.outside.amount.images,
    }


def _finite(value: float) -> float | None:
    """None for more or fewer labels than were measured."""
    return value if value and math.isfinite(value) else None
