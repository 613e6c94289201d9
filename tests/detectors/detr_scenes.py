"""Small DETRs of all kinds for the tests."""

import torch

from selfdet.detectors.queries import QueryDetector
from selfdet.detectors.zoo import DETECTORS
from selfdet.models.backbones import build_backbone

BOXES = [[10, 12, 40, 60], [50, 20, 120, 90]]
KEYS = ("detr", "deformable_detr", "rtdetr")


def small(key: str, num_classes: int = 3, seed: int = 0, **options) -> QueryDetector:
    """The detector with two layers over a random little ResNet, its outputs no ties."""
    torch.manual_seed(seed)
    options = {"image_size": 128, "layers": 2, "queries": 60, **options}
    detector = DETECTORS[key](num_classes, build_backbone("test_resnet"), **options)
    with torch.no_grad():
        for name, value in detector.net.named_parameters():
            if "decoder" in name and name.endswith("bias") and "sampling_offsets" not in name:
                value.add_(torch.randn(value.shape), alpha=0.1)  # most begin as zeros
            if any(part in name for part in ("class", "score_head", "bbox")) and name.endswith("weight"):
                value.normal_(std=0.2)
            if "attn.sampling_offsets" in name or "attn.attention_weights" in name:
                value.add_(torch.randn(value.shape), alpha=0.05)  # begin without a look at the query
    return detector


def small_detr(num_classes: int = 3, seed: int = 0, **options) -> QueryDetector:
    """A small DETR itself."""
    return small("detr", num_classes, seed, **options)
