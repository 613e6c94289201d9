"""What detectors share that predict at every cell of a pyramid: FCOS and RetinaNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from selfdet.detectors._torchvision import (
    OneStageNet,
    anchors_of,
    assignment,
    box_losses,
    box_outputs,
    class_logits,
    decoded,
    head_outputs,
    net_detections,
    net_losses,
)
from selfdet.detectors.base import Batch, Detector, Regions
from selfdet.detectors.network import Part, body_patterns
from selfdet.detectors.sampling import choose
from selfdet.detectors.settings import check_detector, image_settings
from selfdet.errors import UserError
from selfdet.models.backbones import Backbone
from selfdet.models.fpn import BackboneWithFPN

SAMPLES = 2048  # places that take part in the box-domain objective, as in AlignDet


class OneStage(Detector):
    """A one-stage network of torchvision's behind the `Detector` protocol."""

    net: OneStageNet
    key: ClassVar[str]
    samples_per_image: ClassVar[bool]  # whether so many places are taken of each image, or of a batch

    def __init__(self, net: OneStageNet, backbone: Backbone, num_classes: int, options: dict[str, Any]) -> None:
        super().__init__(net, backbone, num_classes)
        self.options = options
        self.size_divisor = net.transform.size_divisible

    def body(self, tensor: Tensor, net: nn.Module | None = None) -> dict[str, Tensor]:
        """The three maps (B, C, H/stride, W/stride) of (B, 3, H, W) normalised images that the pyramid stands on; of
        a plain transformer the one."""
        return self.net.backbone.maps(self.net.backbone.body if net is None else net, tensor)

    def neck(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Pyramid maps (B, fpn_channels, H/stride, W/stride), finest first."""
        return self.net.backbone.neck(maps)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """torchvision's own "classification", "bbox_regression" and, of FCOS, "bbox_ctrness" losses (scalars,
        float32)."""
        maps = list(self.features(batch).values())
        return net_losses(self.net, batch.tensor, batch.sizes, maps, head_outputs(self.net, maps), batch.targets)

    def detections(self, batch: Batch) -> list[dict[str, Tensor]]:
        """Per image "boxes" (N, 4) xyxy px of the image as given, "scores" (N,) falling, "labels" (N,) 0…K−1."""
        maps = list(self.features(batch).values())
        return net_detections(self.net, batch.tensor, batch.sizes, maps, head_outputs(self.net, maps))

    def regions(
        self,
        maps: Mapping[str, Tensor],
        batch: Batch,
        projector: nn.Module,
        generator: torch.Generator,
        *,
        losses: bool,
        samples: int | None = None,
    ) -> list[Regions]:
        """Sampled anchors (RetinaNet) or points (FCOS), assigned as in training; one `Regions`.

        At most `samples` of each image (RetinaNet) or of the batch (FCOS): those of a box first, then background, which
        is taken from inside the images only: padding looks the same everywhere. `losses`: the library's own box losses
        ("bbox_regression", of FCOS on the sampled places alone and with "bbox_ctrness") and "objectness", the focal
        loss of the classifier for box or background. It trains the classifier's layer alone, on features without
        gradient, so that what is pre-trained can already rank its boxes.

        Source: Li et al., AlignDet, arXiv 2307.11077; of the objectness: this project.
        """
        levels = list(maps.values())
        anchors = anchors_of(self.net, batch.tensor, batch.sizes, levels)
        matched = assignment(self.net, anchors, levels, batch.targets)
        stood = torch.stack(anchors)
        places = self._sample(matched, stood, batch.sizes, generator, SAMPLES if samples is None else samples)
        stood = stood.flatten(0, 1)[places]
        features = [self.net.head.classification_head.conv(level) for level in levels]
        regions = Regions(projector(features, places), _ids(matched, batch.targets).flatten()[places], stood)
        if losses:
            outputs = box_outputs(self.net, levels)
            regression = outputs["bbox_regression"].detach().flatten(0, 1)[places]
            regions.boxes = decoded(self.net, regression, stood)
            regions.losses = box_losses(self.net, outputs, batch.targets, anchors, self._trained(matched, places))
            regions.losses["objectness"] = self._objectness(features, matched)
            regions.figures = self._figures(regression[regions.ids >= 0])
        return [regions]

    def _sample(
        self,
        matched: Tensor,
        anchors: Tensor,
        sizes: list[tuple[int, int]],
        generator: torch.Generator,
        most: int,
    ) -> Tensor:
        """Positions (R,) of the taken places among the batch's B · N."""
        centres = (anchors[..., :2] + anchors[..., 2:]) / 2
        ends = centres.new_tensor([(width, height) for height, width in sizes])[:, None]
        background = (matched == -1) & ((centres >= 0) & (centres < ends)).all(2)
        if not self.samples_per_image:
            return choose(matched.flatten() >= 0, background.flatten(), most, generator)
        images = zip(range(0, matched.numel(), matched.shape[1]), matched >= 0, background)
        return torch.cat([start + choose(objects, rest, most, generator) for start, objects, rest in images])

    def _trained(self, matched: Tensor, places: Tensor) -> Tensor:
        """The assignment (B, N) that the box losses see."""
        return matched

    def _objectness(self, features: list[Tensor], matched: Tensor) -> Tensor:
        logits = class_logits(self.net, [level.detach() for level in features])
        objects = matched >= 0
        with torch.autocast(logits.device.type, enabled=False):
            truth = objects[..., None].expand_as(logits).to(logits.dtype)
            loss = sigmoid_focal_loss(logits, truth, reduction="none")
            return (loss.sum(2) * (matched > -2)).sum() / objects.sum().clamp(min=1)

    def _figures(self, regression: Tensor) -> dict[str, Tensor]:
        """Of the box outputs (R, 4) of the taken places that have a target."""
        return {}

    def config(self) -> dict[str, Any]:
        """Plain values: `DETECTORS[detector](num_classes, build_backbone(backbone), **options)` rebuilds it; the rest
        is what torchvision's own network needs to know beside the weights (sizes in px, those of anchors by level)."""
        transform, generator = self.net.transform, self.net.anchor_generator
        return {
            "detector": self.key,
            "num_classes": self.num_classes,
            "backbone": self.backbone.name,
            "options": dict(self.options),
            "strides": list(self.net.backbone.strides),
            "anchor_sizes": [list(sizes) for sizes in generator.sizes],
            "aspect_ratios": list(generator.aspect_ratios[0]),
            "nms_threshold": self.net.nms_thresh,
            "mean": list(transform.image_mean),
            "std": list(transform.image_std),
            "size_divisible": transform.size_divisible,
        }


def _ids(matched: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
    """The id of each place's target, (B, N) int64; what is no target stays below 0."""
    rows = []
    for row, target in zip(matched, targets):
        rows.append(torch.where(row < 0, row, target["ids"][row.clamp(min=0)]) if len(target["ids"]) else row)
    return torch.stack(rows)


def one_stage_parts(outputs: str, keep_box_outputs: bool) -> dict[str, Part]:
    """The backbone, the pyramid, the two towers and the layers behind them; `outputs` matches those that give boxes."""
    towers, classifier = r"head\.(classification|regression)_head\.conv\.", r"head\.classification_head\.cls_logits\."
    boxes = rf"head\.regression_head\.{outputs}(\.|$)"
    body, connections = body_patterns(r"backbone\.body\.")
    return {
        "backbone": Part([body]),
        "neck": Part([connections, r"backbone\.(fpn|simple)\."]),
        "head": Part([towers, boxes] if keep_box_outputs else [towers]),
        "last": Part([classifier] if keep_box_outputs else [classifier, boxes], reinit=True),
    }


def check_one_stage(num_classes: int, backbone: Backbone, fpn_channels: int, head_convs: int, image_size: int) -> None:
    """Refuse what no one-stage detector can be built with. Raises: UserError."""
    check_detector(num_classes, backbone, fpn_channels, image_size)
    if head_convs < 1:
        raise UserError(f"head_convs {head_convs}: expected at least 1", "the usual number is 4")


def one_stage_settings(backbone: Backbone, body: BackboneWithFPN, options: Mapping[str, Any]) -> dict[str, Any]:
    """What both of torchvision's networks are told of images and results; 320 px stay as they are."""
    form = options["mmdet"]
    # mmdet pads to what the backbone needs: it knows the strides of its levels.
    return {
        **image_settings(backbone, body.strides[-2 if form is None else -3], options["image_size"]),
        "score_thresh": options["score_threshold"],
        "detections_per_img": options["detections"],
        **({} if form is None else {"nms_thresh": form["iou_threshold"]}),
    }
