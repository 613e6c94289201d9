"""The backbone stage of `selfdet pretrain`: DenseCL, MoCo v2 or SimCLR."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from selfdet.data.views import TwoViews, ViewDataset, collate_views
from selfdet.drawing.training import plot_training
from selfdet.drawing.views import draw_view_pairs
from selfdet.errors import UserError
from selfdet.interchange.history import HISTORY, history_from, pretrained
from selfdet.interchange.pretrainings import whole_of
from selfdet.interchange.starts import backbone_note, load_backbone, save_backbone
from selfdet.methods.densecl import DenseCL
from selfdet.methods.moco import MoCo
from selfdet.methods.simclr import SimCLR
from selfdet.models.backbones import build_backbone, build_unfilled
from selfdet.models.composite import plain_name
from selfdet.training import defaults, memory
from selfdet.training.defaults import ASKED, Default, Length
from selfdet.training.health import MatchProbe, words
from selfdet.training.log import plural
from selfdet.training.snapshots import Snapshots
from selfdet.training.stage import Weights
from selfdet.verbs.stages import Call, StageSettings

METHODS: dict[str, Callable[..., DenseCL | MoCo | SimCLR]] = {"densecl": DenseCL, "moco": MoCo, "simclr": SimCLR}
VIEW_SIZE = 224
LOOKS = 20  # looks at the matches in a run


def backbone_length(call: Call, images: int, asked: StageSettings) -> Length:
    """Batch and steps of this stage on so many images."""
    return call.length("backbone", images, asked, defaults.contrastive_steps)


def check_backbone_stage(about: Mapping[str, Any], asked: StageSettings) -> None:
    """Refuse now a network, or a size of its images, that this stage would refuse after boxes were found.

    Raises: UserError.
    """

    def build() -> None:
        net = build_backbone(plain_name(about["backbone"]))
        if asked.image_size is not None:
            net.check_image_size(asked.image_size)

    build_unfilled(build)


def pretrain_backbone(
    call: Call,
    paths: Sequence[Path],
    about: Mapping[str, Any],
    asked: StageSettings,
    *,
    method: str,
    options: Mapping[str, Any],
    queue_length: int | None,
    clip: float,
) -> dict[str, Any]:
    """Train a backbone on the images `paths`; `about` is what the run's settings say of images and architecture. Of a
    composite backbone it is the network that it has two of: both start from what is learned here.

    Returns what the verb does. Raises: UserError; Interrupted after saving when stopped.
    """
    runtime = call.runtime
    torch.manual_seed(call.seed)
    plain = plain_name(about["backbone"])
    before = history_from(about["backbone_weights"], plain)
    net, report = load_backbone(plain, about["backbone_weights"])
    length = backbone_length(call, len(paths), asked)
    images_per_step, total = int(length.batch.value), int(length.steps.value)
    snapshots = call.snapshots("backbone", asked, length)
    rate = defaults.contrastive_lr(len(paths), images_per_step, pretrained=about["backbone_weights"] is not None)
    rate = rate if asked.lr is None else Default(asked.lr, ASKED)
    queue = None if method == "simclr" else defaults.queue_length(len(paths))
    whole = whole_of(about["backbone_weights"])
    if whole is not None and whole.method == method:
        queue = Default(whole.queue_length, "as long as that of the weights")
        options = {**options, "dim": whole.dim}
    if queue_length is not None:
        if queue is None:
            raise UserError(
                f"--queue-length {queue_length}: simclr has no queue", "Leave it out, or take densecl or moco"
            )
        queue = Default(queue_length, ASKED)
    usual_size = call.of("backbone").number("image_size", Default(VIEW_SIZE, "default"))
    shown = usual_size if asked.image_size is None else Default(asked.image_size, ASKED)
    size = int(shown.value)
    net.check_image_size(size)

    recipe = call.recipe(
        steps=total,
        batch_size=images_per_step,
        lr=rate.value,
        schedule="cosine",
        warmup_steps=0,
        clip=clip,
        evaluate_every=max(25, total // LOOKS),
    )
    if recipe.images_per_pass(call.processes) == 1 and size <= net.strides[-1]:
        raise UserError(
            f"one image of {size} px at a time leaves batch norm one value a channel",
            "Use a larger --image-size, more images or a smaller --accumulate",
        )
    options = {**({} if queue is None else {"queue_length": int(queue.value)}), **options, "seed": call.seed}
    module = METHODS[method](net, **options)
    carried: list[str] = []
    if whole is not None:
        alone = f"heads and queues of {method} begin afresh: the weights are of {whole.method}"
        carried = [whole.fill(module) if whole.method == method else alone]
    config = {
        **about,
        "method": method,
        "method_options": options,
        "image_size": size,
        "snapshots": snapshots or None,
        "precision": runtime.precision,
        "processes": call.processes,
        **asdict(recipe),
    }
    stage = call.open("backbone", config, recipe)
    if stage.finished:
        return stage.summary()
    stage.introduce(
        f"{method} on {plural(len(paths), 'image')} of {about['images']}; {runtime.describe}",
        *call.said,
        *([] if plain == about["backbone"] else [f"both copies of {about['backbone']} start from this {plain}"]),
        *carried,
        report=report,
        choices={"batch size": length.batch, "steps": length.steps, "learning rate": rate, "image size": shown}
        | ({} if queue is None else {"queue length": queue}),
    )

    module = runtime.place(module)
    each = memory.kept_bytes(module.encoder, size, runtime.mixed)
    both = 2 if method == "simclr" else 1  # views with gradient
    stage.expect_memory(module.encoder, None if each is None else both * each)
    dataset = ViewDataset(paths, TwoViews(size, call.seed))
    # Before a checkpoint is loaded: every run, resumed or not, is compared with its own beginning.
    probe = MatchProbe(paths, size, call.seed, runtime.fabric.device, untrained=module.encoder.backbone)
    if runtime.first and not stage.start:
        draw_view_pairs(dataset, stage.run.pictures / "first_views.jpg")
    note = {"method": method, "detector": about["detector"], "steps": str(recipe.steps)}
    note |= {HISTORY: [*before, pretrained(method, about, recipe.steps, call.seed)]}
    done = stage.train(
        module,
        [{"params": [parameter for parameter in module.parameters() if parameter.requires_grad]}],
        dataset,
        collate_views,
        Weights("encoder.backbone.net.", backbone_note(net, note)),
        evaluate=lambda step: probe(module.encoder.backbone),
        snapshots=Snapshots(
            snapshots,
            length.per_epoch,
            lambda file, at: save_backbone(file, module.encoder.backbone, note | at),
        ),
    )
    if done < recipe.steps:
        return stage.unfinished(done)
    if runtime.first:
        rows, run = stage.run.read_metrics(), stage.run
        plot_training(rows, run.pictures)
        for sentence in words(rows, None if queue is None else int(queue.value)):
            stage.reporter.line(sentence)
        # Last of all: a stage that has its weights is finished.
        save_backbone(run.backbone, module.encoder.backbone, note)
        stage.reporter.line(f"backbone: {run.backbone}")
    return stage.summary()
