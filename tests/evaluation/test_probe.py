"""Probes tell apart what their features do, and no image is on both sides of a split."""

from __future__ import annotations

import pytest
import torch
from tests.evaluation.patches import noise, pixels

from selfdet.data.probe_samples import ProbeSamples
from selfdet.evaluation.probe import chance, features, judge, linear, nearest, settle, splits
from selfdet.models.backbones import build_backbone


def blobs(count: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes in eight directions of space, well apart."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return 5 * torch.eye(8)[labels] + torch.randn(count, 8, generator=rng), labels


def samples(images: list[int], labels: list[int], classes: int) -> ProbeSamples:
    count = len(images)
    pictures = torch.zeros(count, 3, 32, 32, dtype=torch.uint8)
    names = [f"class {number}" for number in range(classes)]
    return ProbeSamples(names, pictures, torch.tensor(labels), torch.arange(count), torch.tensor(images))


def test_both_classifiers_tell_well_separated_classes_apart() -> None:
    (train, known), (test, truth) = blobs(seed=0), blobs(seed=1)
    assert judge(nearest(train, known, test, 10, 3), truth)["accuracy"] > 0.95
    assert judge(linear(train, known, test, 3), truth)["accuracy"] > 0.95


def test_features_that_say_nothing_are_at_chance() -> None:
    (_, known), (_, truth) = blobs(150), blobs(150)
    noisy = [torch.randn(150, 8, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6)]
    for answer in (nearest(noisy[0], known, noisy[1], 10, 3), linear(noisy[0], known, noisy[1], 3)):
        assert judge(answer, truth)["balanced_accuracy"] < 0.5


def test_neighbours_vote_as_a_loop_does() -> None:
    (train, known), (test, _) = blobs(30), blobs(9, seed=2)
    test = test + torch.randn(test.shape, generator=torch.Generator().manual_seed(1)) * 4
    told = nearest(train, known, test, 5, 3)
    for query, answer in zip(test, told.tolist()):
        similar = sorted(((float(torch.cosine_similarity(query, k, dim=0)), int(c)) for k, c in zip(train, known)))[-5:]
        votes = {
            label: sum(2.718281828459045 ** (s / 0.07) for s, own in similar if own == label) for _, label in similar
        }
        assert answer == max(votes, key=lambda label: votes[label])


def test_scale_and_shift_of_a_feature_change_no_linear_answer() -> None:
    (train, known), (test, _) = blobs(), blobs(30, seed=3)
    other = torch.tensor([1e-3, 1.0, 1e3, 1.0, 7.0, 1.0, 1.0, 1.0])
    assert linear(train, known, test, 3).equal(linear(train * other - 4, known, test * other - 4, 3))


def test_a_class_that_is_rare_counts_as_much_as_another_when_balanced() -> None:
    truth = torch.tensor([0] * 9 + [1])
    assert judge(torch.zeros(10, dtype=torch.int64), truth) == {"accuracy": 0.9, "balanced_accuracy": 0.5}
    assert chance(torch.tensor([1, 1, 0]), truth) == {"accuracy": pytest.approx(0.1), "balanced_accuracy": 0.5}


def test_no_image_is_on_both_sides_and_every_class_on_each() -> None:
    images = [0, 0, 0, 1, 1, 2, 3, 3, 4, 5, 6, 7]
    labels = [0, 0, 1, 0, 2, 0, 0, 1, 2, 0, 0, 0]
    given = samples(images, labels, 3)
    drawn = list(splits(given, 0.4, range(4)))
    for learn, judged in drawn:
        assert sorted([*learn.tolist(), *judged.tolist()]) == list(range(12))
        assert not {images[i] for i in learn} & {images[i] for i in judged}
        assert {labels[i] for i in learn} == {labels[i] for i in judged} == {0, 1, 2}
    assert len({tuple(judged.tolist()) for _, judged in drawn}) > 1
    assert [judged.tolist() for _, judged in splits(given, 0.4, range(4))] == [judged.tolist() for _, judged in drawn]


def test_something_is_held_out_even_where_every_image_has_a_class_of_its_own() -> None:
    for learn, judged in splits(samples([0, 1, 2], [0, 1, 2], 3), 0.3, range(3)):
        assert (len(learn), len(judged)) == (2, 1)


def test_a_boxs_features_are_those_of_its_place_and_nothing_else() -> None:
    """The pixel network's map holds a picture's cells: a box of one cell has that cell's mean colour."""
    pictures = noise(64, 128).reshape(3, 64, 2, 64).permute(2, 0, 1, 3).contiguous()
    boxes = torch.tensor([[0.0, 0, 32, 32], [32, 32, 64, 64], [0, 0, 32, 32]])
    where = torch.tensor([0, 1, 1])
    given = ProbeSamples(["a", "b"], pictures, torch.tensor([0, 1, 0]), where, where, boxes)
    found = features(pixels(), given, 1)
    assert found.equal(features(pixels(), given, 2))
    changed = pictures.clone()
    changed[:, :, :16, 48:] = 0  # a cell that no box is near
    again = ProbeSamples(["a", "b"], changed, torch.tensor([0, 1, 0]), where, where, boxes)
    assert features(pixels(), again, 2).allclose(found)
    assert not found[0].allclose(found[2])


def test_an_untrained_network_gets_the_pictures_statistics_and_is_left_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    net = build_backbone("test_resnet").eval()
    pictures = torch.stack([noise(64, 64)] * 4)
    settle(net, pictures, 2)
    means = torch.cat([v.flatten() for name, v in net.net.state_dict().items() if name.endswith("running_mean")])
    assert means.abs().max() > 0.1
    assert not any(module.training for module in net.modules())
