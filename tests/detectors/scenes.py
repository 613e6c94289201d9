"""Small samples and small detectors for the tests of this room."""

import torch
from torchvision import tv_tensors

from selfdet.data.sample import Sample, boxes_xyxy
from selfdet.detectors.one_stage import FCOSDetector, fcos
from selfdet.models.backbones import build_backbone


def sample(height: int, width: int, boxes=(), labels=(), seed: int = 0, original=None) -> Sample:
    """A noise image with the given xyxy boxes."""
    pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Sample(
        tv_tensors.Image(pixels),
        boxes_xyxy(corners, (height, width)),
        torch.arange(len(corners)),
        torch.tensor(labels, dtype=torch.int64),
        original_size=original,
    )


def small_fcos(num_classes: int = 3, seed: int = 0, **options) -> FCOSDetector:
    """FCOS over a random ResNet-18 with narrow towers; its outputs are spread so that scores are no ties."""
    torch.manual_seed(seed)
    options = {"fpn_channels": 64, "head_convs": 1, "image_size": 128, **options}
    detector = fcos(num_classes, build_backbone("resnet18"), **options)
    with torch.no_grad():
        detector.net.head.classification_head.cls_logits.weight.normal_(std=0.3)
        detector.net.head.regression_head.bbox_reg.bias.fill_(2.0)
    return detector
