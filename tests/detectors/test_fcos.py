"""What only FCOS has: centre sampling in strides, and box losses on the sampled points."""

import torch
from tests.detectors.scenes import EVERY_LEVEL, sample, small_fcos

from selfdet.detectors._torchvision import head_outputs
from selfdet.detectors.fcos import anchor_sizes


def regions(detector, samples=None, boxes=EVERY_LEVEL):
    batch = detector.prepare([sample(256, 256, boxes)])
    maps = {str(s): torch.randn(1, 64, -(-256 // s), -(-256 // s)) for s in detector.net.backbone.strides}
    draw = torch.Generator().manual_seed(0)
    return detector.regions(maps, batch, detector.projector(8), draw, losses=True, samples=samples)[0]


def test_anchor_sides_are_those_of_the_levels():
    assert anchor_sizes(320, [8, 16, 32, 64, 128]) == [4, 8, 16, 32, 64]
    assert small_fcos(image_size=1024).config()["anchor_sizes"] == [[8], [16], [32], [64], [128]]


def test_centre_sampling_keeps_its_radius_in_strides():
    for image_size in (256, 512, 1024):
        config = small_fcos(image_size=image_size).config()
        assert config["center_sampling_radius"] * config["anchor_sizes"][0][0] == 1.5 * config["strides"][0]


def test_box_losses_are_means_over_the_sampled_points_alone():
    detector = small_fcos()
    full = regions(detector)
    placed = int((full.ids >= 0).sum())
    detector.net.head.regression_head.bbox_ctrness.weight.data.zero_()
    for samples in (placed, 5, 1):
        found = regions(detector, samples)
        assert len(found.ids) == int((found.ids >= 0).sum()) == samples
        # All centerness logits are 0: the loss of one point is log 2 wherever it is, and so is their mean.
        torch.testing.assert_close(found.losses["bbox_ctrness"], torch.tensor(2.0).log())
    assert regions(detector, 1).losses["bbox_regression"] != regions(detector, 5).losses["bbox_regression"]


def test_the_share_of_distances_at_zero_is_told():
    detector = small_fcos()
    assert regions(detector).figures["zero_distances"] == 0
    with torch.no_grad():
        detector.net.head.regression_head.bbox_reg.bias[:] = torch.tensor([-99.0, 2, 2, 2])
    assert regions(detector).figures["zero_distances"] == 0.25
    assert "zero_distances" not in regions(detector, boxes=[]).figures


def test_every_cell_starts_with_a_box_whose_distances_the_gradient_reaches():
    detector = small_fcos()
    maps = list(detector.features(detector.prepare([sample(128, 128)])).values())
    distances = head_outputs(detector.net, maps)["bbox_regression"]
    assert (distances > 0).float().mean() > 0.99
