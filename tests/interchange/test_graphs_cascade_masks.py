"""The graph of a cascade with masks finds what the detector does."""

import torch
from tests.detectors.rcnn_scenes import small_cascade
from tests.detectors.scenes import sample

from selfdet.interchange.graphs_rcnn import RCNNGraph
from selfdet.interchange.suppression import suppressed


@torch.no_grad()
def test_the_masks_of_a_graph_are_the_mean_of_branches_that_are_told_of_each_other():
    detector = small_cascade(masks=True, image_size=64, detections=10, score_threshold=0.0).eval()
    for heads in detector.stages:
        heads.mask_predictor.mask_fcn_logits.weight.normal_(std=0.3)
    one = sample(64, 64)
    own = detector.detections(detector.prepare([one]))[0]
    graph = RCNNGraph(detector, suppressed, True).eval()
    found = graph(one.image.as_subclass(torch.Tensor)[None], torch.tensor([[64, 64]]), torch.zeros(1))
    for name, value in zip(("boxes", "scores", "labels", "rows", "masks"), found):
        if name != "rows":
            torch.testing.assert_close(value, own[name], atol=1e-4, rtol=1e-4)
