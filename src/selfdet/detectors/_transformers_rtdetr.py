"""What we use of transformers' RT-DETR beyond its documented interface: a contract test for each.

Legend: B images, Q queries, L decoder layers, D channels, K classes; (h, w) a map's cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selfdet.detectors._transformers import Criterion, Maps, begin_as_published, least_backbone, library
from selfdet.models.backbones import Backbone

if TYPE_CHECKING:
    from transformers import RTDetrForObjectDetection

LEVELS = 3  # maps of the backbone that are looked at, each of half the cells of the one before
PRIOR = 0.01  # what a class is given at first, as of all detectors with a focal loss


def rtdetr_network(
    backbone: Backbone, num_classes: int, queries: int, layers: int, denoising: int
) -> RTDetrForObjectDetection:
    """transformers' RT-DETR over `backbone`, with as many decoder layers, at random; `denoising` noisy boxes are
    learned from beside the queries, where there are labels.

    Raises: UserError without transformers.
    """
    transformers = library("rtdetr")
    channels, strides = backbone.channels[-LEVELS:], backbone.strides[-LEVELS:]
    config = transformers.RTDetrConfig(
        backbone_config=least_backbone(LEVELS),
        num_labels=num_classes,
        num_queries=queries,
        decoder_layers=layers,
        num_denoising=denoising,
        encoder_in_channels=channels,
        feat_strides=strides,
        initializer_bias_prior_prob=PRIOR,
        freeze_backbone_batch_norms=False,  # `apply_batch_norm` does
    )
    net = transformers.RTDetrForObjectDetection(config)
    model = net.model
    model.backbone = Maps(backbone, LEVELS)
    for projection, own in zip(model.encoder_input_proj, channels):
        projection[0] = nn.Conv2d(own, config.encoder_hidden_dim, 1, bias=False)
    choice = (model.enc_output, model.enc_bbox_head)
    begin_as_published(model.encoder_input_proj, model.encoder, model.decoder_input_proj, *choice)
    begin_as_published(model.decoder.layers, model.decoder.query_pos_head, model.decoder.bbox_embed)
    for boxes in (model.enc_bbox_head, *model.decoder.bbox_embed):
        nn.init.zeros_(boxes.layers[-1].weight)
        nn.init.zeros_(boxes.layers[-1].bias)
    return net


def rtdetr_criterion(net: RTDetrForObjectDetection) -> Criterion:
    """The library's matching and losses: a varifocal loss of classes, weights as it has them."""
    from transformers.loss.loss_rt_detr import RTDetrLoss

    loss = RTDetrLoss(net.config)
    return Criterion(loss, ("vfl", "boxes"), dict(loss.weight_dict))


def encoded(net: RTDetrForObjectDetection, maps: Sequence[Tensor]) -> list[Tensor]:
    """The backbone's maps, mixed with each other by the library's encoder, (B, D, h, w) each, finest first."""
    model: Any = net.model
    given = [layer(features) for layer, features in zip(model.encoder_input_proj, maps)]
    return list(model.encoder(given).last_hidden_state)


def decoded(net: RTDetrForObjectDetection, maps: Sequence[Tensor], targets: list[dict[str, Tensor]] | None) -> Any:
    """What the library's model gives of `encoded` maps: `intermediate_hidden_states` (B, L, Q, D),
    `intermediate_logits` (B, L, Q, K), `intermediate_reference_points`, the layers' boxes (B, L, Q, 4), and
    `enc_topk_logits` and `enc_topk_bboxes` of the cells that become queries.

    With `targets` ("boxes", "class_labels") a network in training mode has noisy boxes before its queries, and says in
    `denoising_meta_values` which. It runs in full precision: each layer goes by the boxes of the one before.
    """
    from transformers.modeling_outputs import BaseModelOutput

    with torch.autocast(maps[0].device.type, enabled=False):
        exact = [each if each.dtype == torch.float64 else each.float() for each in maps]
        return net.model(
            pixel_values=None,
            inputs_embeds=exact[0],  # looked at for its size and device alone, where the encoder has run
            encoder_outputs=BaseModelOutput(last_hidden_state=exact),  # type: ignore[arg-type]
            labels=targets,
        )
