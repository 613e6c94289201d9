"""Small samples and small detectors for the tests of this room."""

import torch
from torch import nn
from torchvision import tv_tensors

from selfdet.data.box_views import BoxViewBatch
from selfdet.data.sample import Sample, boxes_xyxy
from selfdet.detectors.fcos import FCOSDetector, fcos
from selfdet.detectors.retinanet import RetinaNetDetector, retinanet
from selfdet.models.backbones import build_backbone

# For an image of 512 px and detectors made for less: together they have places on every level of the pyramid.
EVERY_LEVEL = [
    [20, 20, 40, 40],
    [300, 30, 340, 72],
    [60, 60, 150, 150],
    [20, 200, 200, 380],
    [60, 60, 470, 470],
    [1, 1, 511, 511],
]


def sample(height: int, width: int, boxes=(), labels=(), seed: int = 0, original=None) -> Sample:
    """A noise image with the given xyxy boxes, without labels where there are not as many of them."""
    pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Sample(
        tv_tensors.Image(pixels),
        boxes_xyxy(corners, (height, width)),
        torch.arange(len(corners)),
        torch.tensor(labels, dtype=torch.int64) if len(labels) == len(corners) else None,
        original_size=original,
    )


def view_batch(*boxes, size: int = 128, seed: int = 0) -> BoxViewBatch:
    """Pairs of square noise images, one pair for each list of boxes, which lie in the same place in both."""
    pairs = [
        [sample(size, size, each, seed=seed + 2 * row + view) for view in (0, 1)] for row, each in enumerate(boxes)
    ]
    return BoxViewBatch([pair[0] for pair in pairs], [pair[1] for pair in pairs])


def small_fcos(num_classes: int = 3, seed: int = 0, **options) -> FCOSDetector:
    """FCOS over a random ResNet-18 with narrow towers; its outputs are spread so that scores are no ties."""
    torch.manual_seed(seed)
    options = {"fpn_channels": 64, "head_convs": 1, "image_size": 128, **options}
    detector = fcos(num_classes, build_backbone("resnet18"), **options)
    with torch.no_grad():
        detector.net.head.classification_head.cls_logits.weight.normal_(std=0.3)
        detector.net.head.regression_head.bbox_reg.bias.fill_(2.0)
    return detector


def small_retinanet(num_classes: int = 3, seed: int = 0, **options) -> RetinaNetDetector:
    """RetinaNet over a random ResNet-18 with narrow towers; its outputs are spread so that scores are no ties."""
    torch.manual_seed(seed)
    options = {"fpn_channels": 64, "head_convs": 1, "image_size": 128, **options}
    detector = retinanet(num_classes, build_backbone("resnet18"), **options)
    with torch.no_grad():
        for branch in (detector.net.head.classification_head, detector.net.head.regression_head):
            for layer in branch.conv.modules():
                if isinstance(layer, nn.Conv2d):  # as they start, towers without norms shrink everything
                    nn.init.kaiming_normal_(layer.weight)
        detector.net.head.classification_head.cls_logits.weight.normal_(std=0.05)
    return detector


SMALL = {"fcos": small_fcos, "retinanet": small_retinanet}
