"""The detector stage of `selfdet pretrain`: AlignDet over a frozen backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from selfdet.data.box_views import BoxViewDataset, BoxViews, box_view_preset, collate_box_views
from selfdet.data.labels import ImageRecord
from selfdet.data.trial import trial_box_views
from selfdet.detectors.base import Detector
from selfdet.detectors.optim import parameter_groups
from selfdet.detectors.zoo import DETECTORS
from selfdet.drawing.box_views import draw_box_views
from selfdet.drawing.training import plot_training
from selfdet.errors import UserError
from selfdet.interchange.history import HISTORY, history_from, pretrained
from selfdet.interchange.starts import check_options, detector_note, load_backbone, save_detector
from selfdet.methods.aligndet import AlignDet
from selfdet.models.backbones import Backbone, build_backbone, build_unfilled
from selfdet.proposing.store import read_proposals
from selfdet.training import defaults, memory
from selfdet.training.box_health import box_words
from selfdet.training.defaults import ASKED, Default, Length
from selfdet.training.log import plural
from selfdet.training.optimizers import OptimizerName
from selfdet.training.recipe import Recipe
from selfdet.training.snapshots import Snapshots
from selfdet.training.stage import Weights
from selfdet.verbs.proposal_clusters import check_clusters, cluster_count, clustered_records
from selfdet.verbs.stages import Call, StageSettings

# What a detector calls its boxes that has seen no label, and the number of this class in files.
CLASS = "object"
CLIP = 10.0
# Learning rate of the classifier's layer, as a multiple: it says object or background of features that it doesn't
# shape, among far more background than objects, and runs away at the rate that suits the others.
CLASSIFIER = 0.1


@dataclass
class DetectorStageSettings(StageSettings):
    """Settings of the detector stage alone; what is left out of the first six follows the flags without its name.

    Args:
        epochs: passes over the images; as --epochs if not given.
        steps: optimiser steps, overrides epochs; as --steps if not given.
        batch_size: images a step, over all processes; as --batch-size if not given.
        image_size: long side of a view, pixels; as --image-size if not given.
        lr: peak learning rate; as --lr if not given.
        snapshots: epochs whose weights are kept; as --snapshots if not given.
        warmup_steps: steps of linear warm-up; a tenth of the stage, at most 500, if not given.
        lr_epochs: passes after which the learning rate is divided by ten; three quarters and eleven twelfths of the
            stage if not given.
        optimizer: sgd with momentum 0.9, or adamw, as transformers are trained; adamw for them, else sgd, if not given.
        norm_decay: weight decay of norms and of transformers' tables of positions; that of all others if not given.
        temperature: τ of the contrast of objects.
        momentum: of the teacher after the first step; it rises to 1.
        boxes_per_image: proposals taken of an image, the first ones, of a DETR fewer than its queries; what the
            method's authors took if not given.
        clusters: pseudo classes of the proposals, by what the backbone sees in them, that a transformer learns to tell
            apart; 1 for none; those of the proposals' file, or 256, or fewer where boxes are few, if not given.
        samples: places that are compared, of a batch of fcos, of others of an image; 2048, of an R-CNN 4096 and of a
            cascade 512, if not given. A DETR compares all its queries.
        negatives: what the places of an object are told from: other places in the same process (local), or those of all
            processes too (gathered), which is the same with one.
        teacher_rois: regions that an R-CNN's teacher compares: those that its own RPN finds (rpn, if not given), or the
            proposals alone, which is cheaper.
    """

    warmup_steps: int | None = None
    lr_epochs: Sequence[int] | None = None
    optimizer: OptimizerName | None = None
    norm_decay: float | None = None
    temperature: float = 0.5
    momentum: float = 0.996
    boxes_per_image: int | None = None
    clusters: int | None = None
    samples: int | None = None
    negatives: Literal["local", "gathered"] = "local"
    teacher_rois: Literal["rpn", "proposals"] | None = None


def detector_length(call: Call, images: int, asked: StageSettings) -> Length:
    """Batch and steps of this stage on so many images."""
    return call.length("detector", images, asked, defaults.box_domain_steps)


def check_detector_stage(
    call: Call,
    about: Mapping[str, Any],
    asked: DetectorStageSettings,
    *,
    length: Length,
    options: Mapping[str, Any],
    train_backbone: bool,
    clip: float | None,
) -> None:
    """Refuse now what this stage would refuse after those before it: networks and numbers that do not fit together,
    and a start of the backbone that is none. `length`: of this stage; the others as of `pretrain_detector`.

    Raises: UserError.
    """
    check_clusters(about["detector"], asked.clusters)
    call.snapshots("detector", asked, length)
    _recipe(call, about["detector"], asked, length, clip)
    if about["backbone_weights"] is not None:
        load_backbone(about["backbone"], about["backbone_weights"])

    def build() -> None:
        backbone = build_backbone(about["backbone"])
        net = _network(about["detector"], 1, backbone, asked, options, train_backbone, asked.image_size)
        AlignDet(net, **_method_options(call, asked, train_backbone))

    build_unfilled(build)


def pretrain_detector(
    call: Call,
    proposals: Path,
    about: Mapping[str, Any],
    asked: DetectorStageSettings,
    *,
    options: Mapping[str, Any],
    train_backbone: bool,
    clip: float | None,
) -> dict[str, Any]:
    """Train neck and head on images whose boxes are in the file `proposals`; `options` go to the detector's builder.

    `about` is what the run's settings say of images and architecture. Returns what the verb does.
    Raises: UserError; Interrupted after saving when stopped.
    """
    runtime = call.runtime
    records = read_proposals(proposals, about["images"])
    clusters = cluster_count(
        call.out, proposals, about["detector"], asked.clusters, sum(len(each.boxes) for each in records)
    )
    torch.manual_seed(call.seed)
    before = history_from(about["backbone_weights"], about["backbone"])
    backbone, report = load_backbone(about["backbone"], about["backbone_weights"])
    usual_size = call.of("detector").size(defaults.detection_size(records))
    size = usual_size if asked.image_size is None else Default(asked.image_size, ASKED)
    pixels = int(size.value)
    net = _network(about["detector"], clusters, backbone, asked, options, train_backbone, pixels)
    length = detector_length(call, len(records), asked)
    images_per_step, total = int(length.batch.value), int(length.steps.value)
    snapshots = call.snapshots("detector", asked, length)
    most = net.boxes_per_image if asked.boxes_per_image is None else asked.boxes_per_image
    recipe, rate = _recipe(call, about["detector"], asked, length, clip)
    method_options = _method_options(call, asked, train_backbone)
    method = AlignDet(net, **method_options)
    groups = parameter_groups(net, {"last": CLASSIFIER}, call.weight_decay, asked.norm_decay, keep_box_outputs=True)
    groups.append({"name": "projector", "lr_scale": 1.0, "params": list(method.projector.parameters())})
    config = {
        **about,
        "method": "aligndet",
        "method_options": method_options,
        "options": net.config()["options"],
        "boxes_per_image": most,
        **({"clusters": clusters} if clusters > 1 else {}),
        "image_size": pixels,
        "norm_decay": asked.norm_decay,
        "snapshots": snapshots or None,
        "precision": runtime.precision,
        "processes": call.processes,
        **asdict(recipe),
    }
    stage = call.open("detector", config, recipe)
    if stage.finished:
        return stage.summary()
    if clusters > 1:
        records = clustered_records(
            runtime, call.out, proposals, about["images"], backbone, count=clusters, seed=call.seed
        )
    taken = [_first(record, most) for record in records]
    views = BoxViews(*box_view_preset(pixels), seed=call.seed)
    dataset = BoxViewDataset(taken, views, pseudo_classes=clusters > 1)
    boxes = sum(len(record.boxes) for record in taken)
    stage.introduce(
        f"AlignDet over {about['detector']} on {plural(len(taken), 'image')} of {about['images']} with "
        f"{plural(boxes, 'proposal')}; {runtime.describe}",
        *call.said,
        *defaults.slow_learner(about["detector"], len(taken), total, images_per_step),
        report=report,
        choices={"batch size": length.batch, "steps": length.steps, "learning rate": rate, "image size": size},
    )
    if about["backbone_weights"] is None and not train_backbone:
        stage.reporter.line(
            "warning: the backbone is random and stays so, and neck and head learn to read it; run the backbone stage "
            "too, or name --backbone-weights"
        )

    area = memory.batch_area([(record.width, record.height) for record in taken], pixels)
    each = memory.kept_of_two(method, trial_box_views, area, runtime.mixed)
    method = runtime.place(method)
    stage.expect_memory(method, each)
    if runtime.first and not stage.start:
        draw_box_views(dataset, stage.run.pictures / "first_views.jpg")
    names = [CLASS] if clusters == 1 else [f"{CLASS} of cluster {number}" for number in range(1, clusters + 1)]
    note = detector_note(net, names, range(1, clusters + 1), pixels) | {"method": "aligndet", "steps": str(total)}
    note |= {HISTORY: [*before, pretrained("aligndet", about, total, call.seed)]}
    done = stage.train(
        method,
        groups,
        dataset,
        collate_box_views,
        Weights("detector.net.", note),
        snapshots=Snapshots(
            snapshots, length.per_epoch, lambda file, at: save_detector(file, method.detector, note | at)
        ),
    )
    if done < recipe.steps:
        return stage.unfinished(done)
    if runtime.first:
        rows, run = stage.run.read_metrics(), stage.run
        plot_training(rows, run.pictures)
        for sentence in box_words(rows):
            stage.reporter.line(sentence)
        # Last of all: a stage that has its weights is finished.
        save_detector(run.detector, method.detector, note)
        stage.reporter.line(f"detector: {run.detector}")
    return stage.summary()


def _network(
    key: str,
    clusters: int,
    backbone: Backbone,
    asked: DetectorStageSettings,
    options: Mapping[str, Any],
    train_backbone: bool,
    pixels: int | None,
) -> Detector:
    """The detector of this key over `backbone`, for images of so many pixels, the builder's own if None.

    Raises: UserError for what does not fit.
    """
    check_options(key, options)
    own: dict[str, Any] = {} if asked.teacher_rois is None else {"teacher_rois": asked.teacher_rois}
    check_options(key, own, "detector-stage.")
    if asked.samples is not None and key in defaults.TRANSFORMERS:
        raise UserError(f"--detector-stage.samples: of {key} all queries are compared, always", "Leave it out")
    # Frozen whatever else is said: the statistics of a backbone that is not trained are those that it brings.
    own["batch_norm"] = "train" if train_backbone else "frozen"
    size = {} if pixels is None else {"image_size": pixels}
    net = DETECTORS[key](clusters, backbone, **options, **own, **size)
    most = asked.boxes_per_image
    if most is not None and most < 1:
        raise UserError(f"--detector-stage.boxes-per-image is {most}, expected 1 or more", "50 is usual")
    queries = net.config()["options"].get("queries")
    if most is not None and queries is not None and most >= queries:
        raise UserError(
            f"--detector-stage.boxes-per-image is {most}, expected fewer than the {queries} queries of {key}",
            f"Lower it, or add --queries {most + 1}",
        )
    return net


def _recipe(
    call: Call, key: str, asked: DetectorStageSettings, length: Length, clip: float | None
) -> tuple[Recipe, Default]:
    """How the detector of this key is trained, and its learning rate with the reason. Raises: UserError."""
    batch, total = int(length.batch.value), int(length.steps.value)
    optimizer = asked.optimizer or defaults.detector_optimizer(key)
    usual = defaults.detector_lr(batch, key, optimizer)
    rate = usual if asked.lr is None else Default(asked.lr, ASKED)
    recipe = call.recipe(
        steps=total,
        batch_size=batch,
        lr=rate.value,
        schedule="step",
        warmup_steps=min(500, total // 10) if asked.warmup_steps is None else asked.warmup_steps,
        clip=CLIP if clip is None else clip,
        optimizer=optimizer,
        lr_steps=None if asked.lr_epochs is None else tuple(epoch * length.per_epoch for epoch in asked.lr_epochs),
    )
    return recipe, rate


def _method_options(call: Call, asked: DetectorStageSettings, train_backbone: bool) -> dict[str, Any]:
    """What AlignDet is told beside the detector."""
    options: dict[str, Any] = {"temperature": asked.temperature, "momentum_start": asked.momentum}
    options |= {"samples": asked.samples, "train_backbone": train_backbone, "seed": call.seed}
    return options if asked.negatives == "local" else {**options, "negatives": asked.negatives}


def _first(record: ImageRecord, most: int | None) -> ImageRecord:
    """A record with its first `most` boxes only, all if None."""
    if most is None:
        return record
    return replace(record, boxes=record.boxes[:most], labels=record.labels[:most])
