"""Label fractions are nested, seeded and reproducible; published COCO splits are what NumPy's old generator gives."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest

from selfdet.data.subset import coco_split_subset, fraction_subset, outside_subset, shots_subset
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


def of_classes() -> dict[int, list[int]]:
    """Class 0 in every second image, 1 in every tenth, 2 in two of a thousand; some have no box."""
    images = {i: [0] if i % 4 else [] for i in IDS}
    images |= {i: [*images[i], 1] for i in IDS[::10]}
    return images | {i: [*images[i], 2] for i in IDS[100:102]}


def images_with(image_ids: list[int], label: int) -> int:
    return sum(label in of_classes()[i] for i in image_ids)


def test_shots_are_so_many_images_of_every_class_or_all_it_has() -> None:
    chosen = shots_subset(of_classes(), 5, seed=0).image_ids
    assert images_with(chosen, 0) >= 5
    assert images_with(chosen, 1) >= 5
    assert images_with(chosen, 2) == 2
    assert len(chosen) <= 12  # and no more than they need


def test_fewer_shots_lie_within_more_and_depend_on_ids_and_seed_alone() -> None:
    images = of_classes()
    for seed in range(5):
        chosen = [set(shots_subset(images, shots, seed).image_ids) for shots in range(1, 20)]
        assert all(fewer <= more for fewer, more in pairwise(chosen))
    assert shots_subset(dict(reversed(images.items())), 3, seed=0) == shots_subset(images, 3, seed=0)
    assert shots_subset(images, 3, seed=1).image_ids != shots_subset(images, 3, seed=0).image_ids


def test_no_shot_and_no_box_are_refused() -> None:
    with pytest.raises(UserError, match="--shots 0"):
        shots_subset(of_classes(), 0, seed=0)
    with pytest.raises(UserError, match="no image has a box"):
        shots_subset({1: [], 2: []}, 1, seed=0)


def test_images_outside_are_the_same_for_all_fractions_that_leave_so_many() -> None:
    chosen = [fraction_subset(IDS, fraction, seed=0).image_ids for fraction in (0.01, 0.5, 0.9, 1.0)]
    outside = [outside_subset(IDS, ids, 200, seed=0) for ids in chosen]
    assert [len(ids) for ids in outside] == [200, 200, 100, 0]
    assert outside[0] == outside[1]
    assert not any(set(ids) & set(out) for ids, out in zip(chosen, outside))
    assert outside_subset(IDS[::-1], chosen[0], 200, seed=1) != outside[0]
