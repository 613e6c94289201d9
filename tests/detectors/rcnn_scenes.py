"""Small two-stage detectors for the tests of this room, and torchvision's own networks with their weights."""

from dataclasses import replace

import torch
from torchvision import tv_tensors
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from selfdet.data.sample import Sample
from selfdet.detectors.cascade_rcnn import CascadeRCNNDetector, cascade_rcnn
from selfdet.detectors.faster_rcnn import FasterRCNNDetector, faster_rcnn
from selfdet.detectors.mask_rcnn import MaskRCNNDetector, mask_rcnn
from selfdet.detectors.two_stage import TwoStage
from selfdet.models.backbones import build_backbone

BOXES = [[10, 12, 40, 60], [50, 20, 120, 90]]


def spread(detector):
    """Give a random network outputs that are no ties."""
    with torch.no_grad():
        for layer in (detector.net.rpn.head.cls_logits, detector.net.rpn.head.bbox_pred):
            layer.weight.normal_(std=0.1)
        detector.net.roi_heads.box_predictor.cls_score.weight.normal_(std=0.3)
    return detector


def small_faster(num_classes: int = 3, seed: int = 0, **options) -> FasterRCNNDetector:
    """Faster R-CNN over a random ResNet-18 with a narrow pyramid."""
    torch.manual_seed(seed)
    options = {"fpn_channels": 64, "image_size": 128, **options}
    return spread(faster_rcnn(num_classes, build_backbone("resnet18"), **options))


def small_c4(num_classes: int = 3, seed: int = 0, **options) -> TwoStage:
    """Faster R-CNN on C4 of a random ResNet-18."""
    torch.manual_seed(seed)
    options = {"neck": "c4", "image_size": 128, **options}
    return spread(faster_rcnn(num_classes, build_backbone("resnet18"), **options))


def small_mask(num_classes: int = 3, seed: int = 0, **options) -> MaskRCNNDetector:
    """Mask R-CNN over a random ResNet-18 with a narrow pyramid."""
    torch.manual_seed(seed)
    options = {"fpn_channels": 64, "image_size": 128, **options}
    return spread(mask_rcnn(num_classes, build_backbone("resnet18"), **options))


def small_cascade(num_classes: int = 3, seed: int = 0, **options) -> CascadeRCNNDetector:
    """Cascade R-CNN over a random ResNet-18 with a narrow pyramid."""
    torch.manual_seed(seed)
    options = {"fpn_channels": 64, "image_size": 128, **options}
    detector = spread(cascade_rcnn(num_classes, build_backbone("resnet18"), **options))
    with torch.no_grad():
        for heads in detector.net.refine:
            heads.box_predictor.cls_score.weight.normal_(std=0.3)
    return detector


TWO_STAGE = {"faster_rcnn": small_faster, "mask_rcnn": small_mask}


def masked(one: Sample) -> Sample:
    """The sample with the ellipse in each box as its mask."""
    height, width = one.size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    masks = torch.zeros(len(one.boxes), height, width, dtype=torch.bool)
    for row, (left, top, right, bottom) in zip(masks, one.boxes.tolist()):
        across, along = (2 * x - left - right) / (right - left), (2 * y - top - bottom) / (bottom - top)
        row.copy_(across**2 + along**2 < 1)
    return replace(one, masks=tv_tensors.Mask(masks))


def stock(detector):
    """torchvision's network, built from the exported configuration alone, with the detector's weights."""
    config = detector.config()
    layers = {f"layer{level}": str(level - 1) for level in (1, 2, 3, 4)}
    body = BackboneWithFPN(resnet18(), layers, [64, 128, 256, 512], 64, LastLevelMaxPool())
    ratios = (tuple(config["aspect_ratios"]),) * len(config["anchor_sizes"])

    def pool(size):
        return MultiScaleRoIAlign(["0", "1", "2", "3"], size, 2, canonical_scale=config["canonical_scale"])

    kind = {"faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}[config["detector"]]
    net = kind(
        body,
        config["num_classes"] + 1,
        min_size=config["options"]["image_size"],
        max_size=config["options"]["image_size"],
        image_mean=config["mean"],
        image_std=config["std"],
        size_divisible=config["size_divisible"],
        rpn_anchor_generator=AnchorGenerator(tuple(map(tuple, config["anchor_sizes"])), ratios),
        box_roi_pool=pool(7),
        box_score_thresh=config["options"]["score_threshold"],
        box_nms_thresh=config["nms_threshold"],
        box_detections_per_img=config["options"]["detections"],
        **({"mask_roi_pool": pool(14)} if kind is MaskRCNN else {}),
    )
    net.load_state_dict(detector.net.state_dict(), strict=True)
    return net


def zero_maps(batch):
    """Maps of the right shapes: then the RPN proposes its anchors."""
    height, width = batch.tensor.shape[-2:]
    names = {"0": 4, "1": 8, "2": 16, "3": 32, "pool": 64}
    return {
        name: torch.zeros(len(batch.sizes), 64, -(-height // stride), -(-width // stride))
        for name, stride in names.items()
    }


def random_maps(batch, seed: int = 3):
    """The same noise for every batch of one shape."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(level.shape, generator=generator) for name, level in zero_maps(batch).items()}
