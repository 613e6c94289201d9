"""A recipe holds nothing that training would stumble over later."""

from __future__ import annotations

import math

import pytest
from tests.training.toys import RECIPE

from selfdet.errors import UserError
from selfdet.training.recipe import Recipe


@pytest.mark.parametrize(
    ("name", "value", "flag"),
    [
        ("steps", 0, "--steps"),
        ("batch_size", 0, "--batch-size"),
        ("accumulate", 0, "--accumulate"),
        ("log_every", 0, "--log-every"),
        ("save_every", -1, "--save-every"),
        ("lr", 0.0, "--lr"),
        ("lr", math.nan, "--lr"),
        ("lr", math.inf, "--lr"),
        ("weight_decay", -1e-4, "--weight-decay"),
        ("warmup_steps", -1, "--warmup-steps"),
        ("workers", -1, "--workers"),
        ("clip", -1.0, "--clip"),
        ("clip", math.nan, "--clip"),
        ("max_time", -1.0, "--max-time"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_flag(name: str, value: float, flag: str) -> None:
    with pytest.raises(UserError, match=f"^{flag} is {value:g}, expected"):
        Recipe(**{**RECIPE, name: value})


def test_a_batch_is_shared_evenly_by_processes_and_micro_batches() -> None:
    recipe = Recipe(**{**RECIPE, "batch_size": 24, "accumulate": 3})
    assert recipe.images_per_pass(2) == 4
    with pytest.raises(UserError, match="--batch-size 24 can't be shared by 5 processes × 3 micro-batches") as refused:
        recipe.images_per_pass(5)
    assert refused.value.hint == "Use a multiple of 15"
    with pytest.raises(UserError, match="can't be shared"):
        Recipe(**{**RECIPE, "batch_size": 2, "accumulate": 4}).images_per_pass(1)


def test_a_run_made_shorter_says_what_of_its_schedule_it_does_not_reach() -> None:
    assert Recipe(**{**RECIPE, "steps": 12_000, "schedule": "step", "lr_steps": (9000, 11_000)}).remarks() == []
    late, warm = Recipe(
        **{**RECIPE, "steps": 9000, "schedule": "step", "lr_steps": (4000, 9000, 11_000), "warmup_steps": 9000}
    ).remarks()
    assert "a run of 9,000 steps ends before step 9,000 and 11,000" in late
    assert "is all warm-up" in warm
