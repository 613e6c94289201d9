"""Cascade R-CNN: three looks at each region, each at the boxes that the one before it has moved, and masks if asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from selfdet.detectors._torchvision_rcnn import (
    FasterRCNN,
    RoIHeads,
    RoIs,
    box_features,
    class_losses,
    decoded_boxes,
    roi_detections,
    roi_outputs,
    rpn_boxes,
    training_rois,
)
from selfdet.detectors.base import Batch, Regions
from selfdet.detectors.batch_norm import apply_batch_norm
from selfdet.detectors.cascade_masks import add_mask_branches, mask_logits, mean_masks
from selfdet.detectors.faster_rcnn import REPRESENTATION, build_box_head, check_rcnn, pyramid_settings
from selfdet.detectors.mask_rcnn import mask_pool, object_mask_loss
from selfdet.detectors.network import Part
from selfdet.detectors.sampling import ObjectsFirst
from selfdet.detectors.two_stage import TwoStage, from_one, recall
from selfdet.models.backbones import Backbone
from selfdet.models.place_heads import RegionHead

# Of each stage: the IoU from which a RoI holds an object, what the targets of its boxes are multiplied with, and the
# weight of its losses.
STAGES = (
    (0.5, (10.0, 10.0, 5.0, 5.0), 1.0),
    (0.6, (20.0, 20.0, 10.0, 10.0), 0.5),
    (0.7, (30.0, 30.0, 15.0, 15.0), 0.25),
)
WEIGHTS = tuple(weight for *_, weight in STAGES)
# In box-domain pre-training as in training, of an image: anchors, RoIs of a stage; of these at most so many objects.
ANCHORS, ANCHOR_OBJECTS = 256, 128
ROIS, ROI_OBJECTS = 512, 128


class OneBoxPredictor(nn.Module):
    """The two output layers of a stage: logits of 1 + K classes, and one box whatever the class."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(features, classes)
        self.bbox_pred = nn.Linear(features, 4)

    def forward(self, x: Tensor, told: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (R, 1 + K), of `told` if given, and regression (R, 4 + 4K), the same for all classes, of features
        (R, D)."""
        logits = self.cls_score(x if told is None else told)
        return logits, self.bbox_pred(x).repeat(1, logits.shape[1])


class CascadeRCNNDetector(TwoStage):
    """A Faster R-CNN of torchvision's, whose `roi_heads` are the first stage and `refine` the others, behind the
    `Detector` protocol; build it with `cascade_rcnn`."""

    key = "cascade_rcnn"
    heads = r"(?:roi_heads|refine\.\d)\."
    labels_only = Part([rf"{heads}mask_"])

    def __init__(self, net: FasterRCNN, backbone: Backbone, num_classes: int, options: dict[str, Any]) -> None:
        super().__init__(net, backbone, num_classes, options)
        self.has_masks = options["masks"]

    @property
    def stages(self) -> list[RoIHeads]:
        """The heads of each stage."""
        return [self.net.roi_heads, *self.net.refine]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """torchvision's own "loss_objectness" and "loss_rpn_box_reg" of the RPN, and "loss_classifier" and
        "loss_box_reg" (scalars, float32), sums over the stages by their weights. Each stage trains with 512 RoIs an
        image, a quarter of them with an object where there are so many: the boxes before it and the targets' own.

        With masks also "loss_mask", such a sum: the branch of a stage trains with as many of the boxes as the stage
        itself has moved them, and the targets' own, that hold an object by the overlap of the stage.
        """
        maps, targets = self.features(batch), from_one(batch.targets, "labels")
        boxes, losses = rpn_boxes(self.net, batch.tensor, batch.sizes, maps, batch.targets)
        for heads, weight in zip(self.stages, WEIGHTS):
            rois = training_rois(heads, boxes, targets)
            logits, regression = roi_outputs(heads, box_features(heads, maps, rois.boxes, batch.sizes))
            for name, loss in class_losses(logits, regression, rois).items():
                losses[name] = losses.get(name, 0.0) + weight * loss
            boxes = [each[kept] for each, kept in zip(_moved(heads, regression, rois.boxes, batch.sizes), _found(rois))]
            if self.has_masks:
                loss = self._mask_loss(heads, training_rois(heads, boxes, targets), maps, batch)
                losses["loss_mask"] = losses.get("loss_mask", 0.0) + weight * loss
        return losses

    def _mask_loss(self, heads: RoIHeads, rois: RoIs, maps: dict[str, Tensor], batch: Batch) -> Tensor:
        """Of one stage, whose branch those before it inform."""
        stages = self.stages
        told = stages[: stages.index(heads) + 1]
        return object_mask_loss(lambda boxes: mask_logits(told, maps, boxes, batch.sizes)[-1], rois, batch.targets)

    def detections(self, batch: Batch) -> list[dict[str, Tensor]]:
        """Per image "boxes" (N, 4) xyxy px of the image as given, "scores" (N,) falling, "labels" (N,) 0…K−1 and, with
        masks, "masks" (N, 28, 28), the probability of the object at the cells of its box: the mean of the stages."""
        found, maps = self._detections(batch)
        if not self.has_masks:
            return found
        logits = mask_logits(self.stages, maps, [each["boxes"] for each in found], batch.sizes)
        with torch.autocast(logits[0].device.type, enabled=False):
            masks = mean_masks(logits, [each["labels"] for each in found])
        return [{**each, "masks": own} for each, own in zip(found, masks)]

    def _detections(self, batch: Batch) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        maps = self.features(batch)
        before, _ = rpn_boxes(self.net, batch.tensor, batch.sizes, maps)
        total: Tensor | float = 0.0
        for heads in self.stages:
            boxes = before
            logits, regression = roi_outputs(heads, box_features(heads, maps, boxes, batch.sizes))
            total = total + logits.softmax(1)
            before = _moved(heads, regression, boxes, batch.sizes)
        assert isinstance(total, Tensor)
        # The library takes logits: these give the mean of the stages' probabilities.
        return roi_detections(heads, (total / len(STAGES)).log(), regression, boxes, batch.sizes), maps

    def projector(self, dim: int) -> nn.Module:
        """Linear → ReLU → linear in place of each stage's classifier: an embedding of size `dim` a RoI."""
        return nn.ModuleList(RegionHead(REPRESENTATION, dim) for _ in STAGES)

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
        """The RoIs that each stage would train with, 512 of an image and at most a quarter of them with a target; the
        others have the id −1. A `Regions` a stage, with its weight.

        `samples` bounds the RoIs of an image. Without `losses` the option `teacher_rois` may take the targets' own
        boxes alone, and the RPN is not run. `losses`: the library's own "loss_objectness" and "loss_rpn_box_reg" of
        256 anchors an image; of each stage "loss_box_reg", as for one class, and "loss_classifier", object or
        background, which trains the classifier's layer alone, on features without gradient.
        Figures: "rpn_recall", the share of the targets that a box of the RPN meets with an IoU of 0.5.

        Source: Li et al., AlignDet, arXiv 2307.11077; of the classifier's loss: this project.
        """
        assert isinstance(projector, nn.ModuleList)
        levels, most = dict(maps), ROIS if samples is None else min(samples, ROIS)
        own: dict[str, Tensor] = {}
        if losses or self.options["teacher_rois"] == "rpn":
            sampler = ObjectsFirst(generator, ANCHOR_OBJECTS, together=ANCHORS)
            targets = batch.targets if losses else None
            boxes, own = rpn_boxes(self.net, batch.tensor, batch.sizes, levels, targets, sampler=sampler)
        else:
            boxes = self._nothing_proposed(batch)
        figures = recall(boxes, batch.targets) if losses else {}
        ids, result = from_one(batch.targets, "ids"), []
        sampler = ObjectsFirst(generator, min(most, ROI_OBJECTS), together=most)
        for heads, embed, weight in zip(self.stages, projector, WEIGHTS):
            rois = training_rois(heads, boxes, ids, sampler)
            features = box_features(heads, levels, rois.boxes, batch.sizes)
            regions = Regions(embed(features), torch.cat(rois.labels) - 1, torch.cat(rois.boxes), weight=weight)
            logits, regression = roi_outputs(heads, features, features.detach())
            moved = _moved(heads, regression, rois.boxes, batch.sizes)
            boxes = [each[kept] for each, kept in zip(moved, _found(rois))]
            if losses:
                objects = RoIs(rois.boxes, rois.rows, [labels.clamp(max=1) for labels in rois.labels], rois.deltas)
                regions.losses = class_losses(logits, regression, objects)
                regions.boxes = torch.cat(moved)
            result.append(regions)
        if losses:
            # The RPN comes before the stages, and its losses have no weight of theirs.
            result[0].losses.update(own)
            result[-1].figures = figures
        return result

    def parts(self, keep_box_outputs: bool = False) -> dict[str, Part]:
        """As of a Faster R-CNN, each part that of all stages; with masks also "mask", the convolutions of the branches,
        whose output layers count to the last. Box-domain pre-training leaves the branches at their random start."""
        parts = super().parts(keep_box_outputs)
        if not self.has_masks:
            return parts
        last = parts.pop("last")
        outputs = Part([*last.patterns, rf"{self.heads}mask_predictor\."], reinit=True)
        return {**parts, "mask": Part([rf"{self.heads}mask_(head|flow)\."]), "last": outputs}

    def config(self) -> dict[str, Any]:
        """As of a Faster R-CNN, and "cascade": of each stage its overlap and its factors of the boxes' targets."""
        return {**super().config(), "cascade": [[overlap, list(factors)] for overlap, factors, _ in STAGES]}


@torch.no_grad()
def _moved(heads: RoIHeads, regression: Tensor, boxes: list[Tensor], sizes: list[tuple[int, int]]) -> list[Tensor]:
    """Of each image the boxes (R, 4) xyxy px where a stage's regression (R, 4 + 4K) has moved them, in the image."""
    moved = decoded_boxes(heads, regression, torch.cat(boxes)).split([len(each) for each in boxes])
    return [clip_boxes_to_image(each, size) for each, size in zip(moved, sizes)]


def _found(rois: RoIs) -> list[Tensor]:
    """Which RoIs (R,) bool of each image were proposed: not those that are a target's own box, which comes anew."""
    return [(labels == 0) | deltas.ne(0).any(1) for labels, deltas in zip(rois.labels, rois.deltas)]


def cascade_rcnn(
    num_classes: int,
    backbone: Backbone,
    *,
    fpn_channels: int = 256,
    box_head: str = "2fc",
    batch_norm: str = "train",
    neck_norm: str | None = None,
    image_size: int = 640,
    score_threshold: float = 0.01,
    detections: int = 100,
    teacher_rois: str = "rpn",
    masks: bool = False,
) -> CascadeRCNNDetector:
    """Cascade R-CNN on a pyramid of strides 4 to 64 over `backbone`, its weights untouched: three stages with RoIs from
    an IoU of 0.5, 0.6 and 0.7 on. A stage gives one box, whatever the class; the scores are the stages' mean.

    `masks`: each stage also learns masks, of 28 × 28 cells a box, of the boxes that it has moved, and is told what the
    stages before it see in them; what is found is the mean of the stages. The other arguments are those of
    `faster_rcnn` on a pyramid.

    Raises: UserError for values out of range.
    Source: Cai and Vasconcelos 2018, Cascade R-CNN; of the masks: Chen et al. 2019, Hybrid Task Cascade, arXiv
    1901.07518, without its branch for semantic segmentation, which needs labels of its own.
    """
    options = {
        "fpn_channels": fpn_channels,
        "box_head": box_head,
        "batch_norm": batch_norm,
        "neck_norm": neck_norm,
        "image_size": image_size,
        "score_threshold": score_threshold,
        "detections": detections,
        "teacher_rois": teacher_rois,
        "masks": masks,
    }
    check_rcnn(num_classes, backbone, options)
    settings = pyramid_settings(backbone, options)
    net = FasterRCNN(
        box_predictor=OneBoxPredictor(REPRESENTATION, num_classes + 1),
        box_fg_iou_thresh=STAGES[0][0],
        box_bg_iou_thresh=STAGES[0][0],
        bbox_reg_weights=STAGES[0][1],
        **settings,
    )
    net.refine = nn.ModuleList(
        RoIHeads(
            box_roi_pool=settings["box_roi_pool"],
            box_head=build_box_head(box_head, fpn_channels, neck_norm),
            box_predictor=OneBoxPredictor(REPRESENTATION, num_classes + 1),
            fg_iou_thresh=overlap,
            bg_iou_thresh=overlap,
            batch_size_per_image=ROIS,
            positive_fraction=ROI_OBJECTS / ROIS,
            bbox_reg_weights=factors,
            score_thresh=score_threshold,
            nms_thresh=net.roi_heads.nms_thresh,
            detections_per_img=detections,
        )
        for overlap, factors, _ in STAGES[1:]
    )
    if masks:
        add_mask_branches([net.roi_heads, *net.refine], mask_pool(settings), fpn_channels, num_classes + 1)
    detector = CascadeRCNNDetector(net, backbone, num_classes, options)
    apply_batch_norm(detector, batch_norm)
    return detector
