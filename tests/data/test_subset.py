"""Label fractions are nested, seeded and reproducible; published COCO splits are what NumPy's old generator gives."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest

from selfdet.data.subset import coco_split_subset, fraction_subset
from selfdet.errors import UserError

IDS = list(range(1000, 3000, 2))


def test_a_smaller_fraction_lies_within_every_larger_one() -> None:
    chosen = [set(fraction_subset(IDS, fraction, seed=3).image_ids) for fraction in (0.001, 0.01, 0.05, 0.1, 0.5, 1)]
    assert [len(ids) for ids in chosen] == [1, 10, 50, 100, 500, 1000]
    assert all(smaller < larger for smaller, larger in pairwise(chosen))


def test_the_choice_depends_on_ids_and_seed_alone() -> None:
    chosen = fraction_subset(IDS, 0.1, seed=0)
    assert fraction_subset(IDS[::-1], 0.1, seed=0) == chosen
    assert fraction_subset(IDS, 0.1, seed=1).image_ids != chosen.image_ids
    # Pinned: a stored fraction means the same images in every version.
    assert fraction_subset(range(20), 0.2, seed=0).image_ids == [4, 7, 15, 18]


def test_an_added_image_moves_no_other() -> None:
    before = set(fraction_subset(IDS, 0.1, seed=0).image_ids)
    after = set(fraction_subset([*IDS, 7], 0.1, seed=0).image_ids)
    assert len(before ^ after) <= 2


def test_at_least_one_image_is_chosen() -> None:
    assert len(fraction_subset([5, 6], 0.01, seed=0).image_ids) == 1


def test_the_hash_names_the_chosen_images_and_nothing_else() -> None:
    chosen = fraction_subset(IDS, 0.01, seed=0)
    text = "\n".join(str(image_id) for image_id in sorted(chosen.image_ids))
    assert chosen.hash == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, float("nan")])
def test_what_is_no_share_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match="not a share"):
        fraction_subset(IDS, fraction, seed=0)


def test_a_published_split_is_one_seeded_choice_with_replacement_over_positions() -> None:
    np.random.seed(2)  # noqa: NPY002
    drawn = np.random.choice(range(len(IDS)), size=100)  # noqa: NPY002
    chosen = coco_split_subset(IDS, percent=10, seed=2)
    assert chosen.image_ids == sorted({IDS[position] for position in drawn})
    assert len(chosen.image_ids) < 100
    assert chosen.scheme == "coco-splits"
    assert chosen.fraction == pytest.approx(0.1)


def test_a_published_split_of_too_few_images_is_refused() -> None:
    with pytest.raises(UserError, match="less than one image"):
        coco_split_subset(IDS[:50], percent=1, seed=1)
