"""What we use of transformers' DETR beyond its documented interface: a contract test for each.

Legend: B images, Q queries, L decoder layers, D channels; (h, w) the map's cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selfdet.detectors._transformers import Criterion, Maps, begin_as_published, least_backbone, library
from selfdet.models.backbones import Backbone

if TYPE_CHECKING:
    from transformers import DetrForObjectDetection

# Of a cost that a pair of a query and a box has, and of the losses: class, L1 and generalised IoU.
CLASS, L1, GIOU = 1, 5, 2


def detr_network(
    backbone: Backbone, num_classes: int, queries: int, layers: int, no_object: float
) -> DetrForObjectDetection:
    """transformers' DETR over `backbone`, with `queries` and as many encoder as decoder layers, at random.

    `no_object`: weight of queries without an object in the class loss.
    Raises: UserError without transformers.
    """
    transformers = library("detr")
    config = transformers.DetrConfig(
        backbone_config=least_backbone(1),
        num_labels=num_classes,
        num_queries=queries,
        encoder_layers=layers,
        decoder_layers=layers,
        eos_coefficient=no_object,
        class_cost=CLASS,
        bbox_cost=L1,
        giou_cost=GIOU,
        bbox_loss_coefficient=L1,
        giou_loss_coefficient=GIOU,
    )
    net = transformers.DetrForObjectDetection(config)
    net.model.backbone = Maps(backbone, 1)
    net.model.input_projection = nn.Conv2d(backbone.channels[-1], config.d_model, 1)
    begin_as_published(net.model.encoder, net.model.decoder, net.model.query_position_embeddings)
    return net


def detr_criterion(net: DetrForObjectDetection, like: Tensor) -> Criterion:
    """The library's matching and losses, of the type and on the device of `like`."""
    from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

    config: Any = net.config
    matcher = HungarianMatcher(class_cost=CLASS, bbox_cost=L1, giou_cost=GIOU)
    kinds = ("labels", "boxes")
    loss = ImageLoss(matcher, config.num_labels, config.eos_coefficient, list(kinds)).to(like.device, like.dtype)
    return Criterion(loss, kinds, {"loss_ce": CLASS, "loss_bbox": L1, "loss_giou": GIOU})


def decoder_states(net: DetrForObjectDetection, features: Tensor, mask: Tensor) -> Tensor:
    """The queries after each decoder layer and the last norm, (L, B, Q, D), of projected maps (B, D, h, w).

    `mask` (B, h, w) bool: the cells that are no padding. The library's own way to all layers (`auxiliary_loss`) feeds
    the normed queries to the next layer, so that training and detection would differ.
    """
    model: Any = net.model
    flat, seen = features.flatten(2).transpose(1, 2), mask.flatten(1)
    positions = model.position_embedding(shape=features.shape, device=features.device, dtype=torch.float32, mask=mask)
    positions = positions.to(features.dtype).flatten(2).transpose(1, 2)
    encoded = model.encoder(inputs_embeds=flat, attention_mask=seen, spatial_position_embeddings=positions)
    places = model.query_position_embeddings.weight[None].repeat(features.shape[0], 1, 1)
    states: list[Tensor] = []

    def keep(module: nn.Module, given: Any, found: Any) -> None:
        states.append(found[0] if isinstance(found, tuple) else found)

    hooks = [layer.register_forward_hook(keep) for layer in model.decoder.layers]
    try:
        model.decoder(
            inputs_embeds=torch.zeros_like(places),
            attention_mask=None,
            spatial_position_embeddings=positions,
            object_queries_position_embeddings=places,
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=seen,
        )
    finally:
        for hook in hooks:
            hook.remove()
    return model.decoder.layernorm(torch.stack(states))
