"""What every detector promises: nothing is resized, predictions are in original pixels, frozen norms stay frozen."""

import copy

import pytest
import torch
from tests.detectors.scenes import SMALL, sample, small_fcos

from selfdet.detectors.network import Part


def test_prepare_normalises_and_pads_without_resizing():
    detector = small_fcos()
    small, large = sample(50, 90, [[5, 6, 20, 30]], [2]), sample(100, 70)
    batch = detector.prepare([small, large])
    assert batch.tensor.shape == (2, 3, 128, 128)
    assert batch.sizes == [(50, 90), (100, 70)]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (detector.backbone.mean, detector.backbone.std))
    torch.testing.assert_close(batch.tensor[0, :, :50, :90], (small.image.as_subclass(torch.Tensor) / 255 - mean) / std)
    assert not batch.tensor[0, :, 50:].any()
    assert not batch.tensor[0, :, :, 90:].any()


def test_targets_are_the_samples_boxes_ids_and_labels():
    detector = small_fcos()
    labelled = sample(64, 64, [[5, 6, 20, 30], [1, 2, 3, 4]], [2, 0])
    unlabelled = sample(64, 64, [[5, 6, 20, 30]])
    unlabelled.labels = None
    first, second = detector.prepare([labelled, unlabelled]).targets
    assert type(first["boxes"]) is torch.Tensor
    assert first["boxes"].tolist() == [[5, 6, 20, 30], [1, 2, 3, 4]]
    assert (first["ids"].tolist(), first["labels"].tolist()) == ([0, 1], [2, 0])
    assert set(second) == {"boxes", "ids"}


def test_padding_is_the_next_multiple():
    detector = small_fcos()
    assert detector.size_divisor == 64
    assert detector.padded_size(320, 240) == (320, 256)


def test_predictions_are_in_pixels_of_the_original_image():
    detector = small_fcos()
    here = sample(96, 128)
    there = sample(96, 128, original=(480, 256))
    found, scaled = detector.predict([here])[0], detector.predict([there])[0]
    assert len(found["boxes"]) > 10
    torch.testing.assert_close(scaled["boxes"], found["boxes"] * torch.tensor([2.0, 5.0, 2.0, 5.0]))
    assert scaled["boxes"].min() >= 0
    assert (scaled["boxes"].max(dim=0).values <= torch.tensor([256.0, 480.0, 256.0, 480.0])).all()


def test_predictions_do_not_depend_on_the_other_images_of_a_batch():
    detector = small_fcos()
    samples = [sample(60, 128, seed=1), sample(128, 128, seed=2), sample(128, 60, seed=3), sample(50, 100, seed=4)]
    together = detector.predict(samples)
    for one, batched in zip(samples, together):
        alone = detector.predict([one])[0]
        torch.testing.assert_close(batched["scores"], alone["scores"], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(batched["boxes"], alone["boxes"], atol=1e-2, rtol=1e-4)
        assert torch.equal(batched["labels"], alone["labels"])


def test_nothing_to_predict_gives_nothing():
    assert small_fcos().predict([]) == []


def test_predictions_do_not_depend_on_training_mode_and_leave_it_as_it_was():
    detector = small_fcos(batch_norm="frozen")
    evaluated = detector.eval().predict([sample(64, 64)])[0]
    statistics = detector.net.backbone.body.bn1.running_mean.clone()
    detector.train()
    trained = detector.predict([sample(64, 64)])[0]
    torch.testing.assert_close(trained["boxes"], evaluated["boxes"])
    assert torch.equal(detector.net.backbone.body.bn1.running_mean, statistics)
    assert detector.net.head.training
    assert not detector.net.backbone.body.bn1.training


def test_the_backbones_weights_have_one_name():
    detector = small_fcos()
    assert detector.backbone.net is detector.net.backbone.body
    assert all(name.startswith("net.") for name in detector.state_dict())
    assert len(list(detector.parameters())) == len(list(detector.net.parameters()))


def test_a_copy_is_whole_and_independent():
    detector = small_fcos(batch_norm="frozen")
    twin = copy.deepcopy(detector)
    assert twin.backbone.net is twin.net.backbone.body
    assert twin.backbone.net is not detector.backbone.net
    before = detector.predict([sample(64, 64)])[0]["scores"]
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    torch.testing.assert_close(detector.predict([sample(64, 64)])[0]["scores"], before)


@pytest.mark.parametrize(("name", "held"), [("head.conv.weight", True), ("ahead.conv.bias", False), ("x.head.", False)])
def test_a_part_matches_from_the_start_of_a_name(name, held):
    assert Part([r"head\."]).holds(name) is held


def test_a_batch_is_split_between_images():
    batch = small_fcos().prepare([sample(60, 90, [[5, 6, 20, 30]], [2]), sample(100, 70), sample(20, 20)])
    first, rest = batch.split(1)
    assert torch.equal(torch.cat([first.tensor, rest.tensor]), batch.tensor)
    assert (first.sizes, rest.sizes) == ([(60, 90)], [(100, 70), (20, 20)])
    assert [len(part.targets) for part in (first, rest)] == [1, 2]


def test_boxes_that_cover_nothing_of_their_image_are_no_targets():
    boxes = [[5, 6, 20, 30], [9, 9, 9, 20], [70, 5, 80, 9], [-9, -9, -1, 50], [60, 60, 90, 90], [float("inf")] * 4]
    (target,) = small_fcos().prepare([sample(64, 64, boxes, [0, 1, 2, 0, 1, 2])]).targets
    assert target["ids"].tolist() == [0, 4]
    assert target["labels"].tolist() == [0, 1]
    assert target["boxes"].tolist() == [boxes[0], boxes[4]]


@pytest.mark.parametrize("small", SMALL.values(), ids=SMALL)
def test_features_are_the_necks_of_the_bodys_maps(small):
    detector = small().eval()
    batch = detector.prepare([sample(64, 64)])
    with torch.no_grad():
        expected = detector.net.backbone(batch.tensor)
        found = detector.features(batch)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], level) for name, level in expected.items())
