"""A small DETR for the tests."""

import torch

from selfdet.detectors.detr import DETRDetector, detr
from selfdet.models.backbones import build_backbone

BOXES = [[10, 12, 40, 60], [50, 20, 120, 90]]


def small_detr(num_classes: int = 3, seed: int = 0, **options) -> DETRDetector:
    """DETR with two layers over a random ResNet-18, its outputs no ties."""
    torch.manual_seed(seed)
    options = {"image_size": 128, "layers": 2, "queries": 60, **options}
    detector = detr(num_classes, build_backbone("resnet18"), **options)
    with torch.no_grad():
        detector.net.model.query_position_embeddings.weight.normal_()
        detector.net.class_labels_classifier.weight.normal_(std=0.2)
        for name, value in detector.net.model.decoder.named_parameters():
            if name.endswith("bias"):
                value.normal_(std=0.1)  # they begin as zeros
        detector.net.bbox_predictor.layers[2].weight.normal_(std=0.2)
    return detector
