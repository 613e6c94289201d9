"""What we use of transformers' Deformable DETR beyond its documented interface: a contract test for each.

Legend: B images, Q queries, L decoder layers, D channels, K classes; (h, w) a map's cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selfdet.detectors._transformers import Criterion, Maps, begin_as_published, least_backbone, library, shrunk
from selfdet.models.backbones import Backbone

if TYPE_CHECKING:
    from transformers import DeformableDetrForObjectDetection

LEVELS = 3  # maps of the backbone that are looked at; a fourth, of half the size, is made of the last
PRIOR = 0.01  # what a class is given at first, as of all detectors with a focal loss


def deformable_network(
    backbone: Backbone, num_classes: int, queries: int, layers: int
) -> DeformableDetrForObjectDetection:
    """transformers' Deformable DETR over `backbone`, each of as many decoder as encoder layers refining the boxes of
    the one before, at random.

    Raises: UserError without transformers.
    """
    transformers = library("deformable_detr")
    channels = backbone.channels[-LEVELS:]
    config = transformers.DeformableDetrConfig(
        backbone_config=least_backbone(len(channels)),
        num_labels=num_classes,
        num_queries=queries,
        num_feature_levels=len(channels) + 1,
        encoder_layers=layers,
        decoder_layers=layers,
        with_box_refine=True,
        tie_word_embeddings=False,  # each layer has heads of its own
    )
    net = transformers.DeformableDetrForObjectDetection(config)
    model = net.model
    model.backbone = Maps(backbone, len(channels))
    for projection, own in zip(model.input_proj, [*channels, channels[-1]]):
        first = projection[0]
        settings = {"kernel_size": first.kernel_size, "stride": first.stride, "padding": first.padding}
        projection[0] = nn.Conv2d(own, config.d_model, **settings)
        nn.init.xavier_uniform_(projection[0].weight)
        nn.init.zeros_(projection[0].bias)
    model.encoder.get_reference_points = places  # the library's would tie a graph to the sizes it was made with
    model.decoder.bbox_embed = net.bbox_embed  # one and the same: refining and the losses are of the same boxes
    begin_as_published(model.encoder, model.decoder, model.query_position_embeddings)
    for classes, boxes in zip(net.class_embed, net.bbox_embed):
        nn.init.xavier_uniform_(classes.weight)
        nn.init.constant_(classes.bias, -math.log((1 - PRIOR) / PRIOR))
        nn.init.zeros_(boxes.layers[-1].weight)
        nn.init.zeros_(boxes.layers[-1].bias)
    nn.init.constant_(net.bbox_embed[0].layers[-1].bias[2:], -2.0)  # small boxes around the places of the queries
    return net


def deformable_criterion(net: DeformableDetrForObjectDetection) -> Criterion:
    """The library's matching and losses: a focal loss of classes, weights as it has them."""
    from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss

    config: Any = net.config
    matcher = DeformableDetrHungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
    kinds = ("labels", "boxes")
    loss = DeformableDetrImageLoss(matcher, config.num_labels, config.focal_alpha, list(kinds))
    weights = {"loss_ce": 1, "loss_bbox": config.bbox_loss_coefficient, "loss_giou": config.giou_loss_coefficient}
    return Criterion(loss, kinds, weights)


def projected(net: DeformableDetrForObjectDetection, maps: Sequence[Tensor]) -> list[Tensor]:
    """The backbone's maps as wide as a query, and the one more, (B, D, h, w) each, finest first."""
    model: Any = net.model
    return [layer(features) for layer, features in zip(model.input_proj, [*maps, maps[-1]])]


def decoded(
    net: DeformableDetrForObjectDetection, maps: Sequence[Tensor], mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """After each decoder layer the queries (L, B, Q, D), logits (L, B, Q, K) and boxes (L, B, Q, 4), cx cy w h as
    shares of each image, of `projected` maps.

    `mask` (B, H, W) bool: the pixels that are no padding. The decoder runs in full precision: each of its layers goes
    by the boxes of the one before.
    """
    model: Any = net.model
    masks = [shrunk(mask, each.shape[-2:]) for each in maps]
    positions = [
        model.position_embedding(shape=each.shape, device=each.device, dtype=torch.float32, mask=own).to(each.dtype)
        + level.view(1, -1, 1, 1)
        for each, own, level in zip(maps, masks, model.level_embed)
    ]
    shapes = [(each.shape[-2], each.shape[-1]) for each in maps]
    sizes = torch.tensor(shapes, device=mask.device)
    common = {
        "spatial_shapes": sizes,
        "spatial_shapes_list": shapes,
        "level_start_index": torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]]),
    }
    seen = torch.cat([own.flatten(1) for own in masks], 1)
    exact = torch.float64 if maps[0].dtype == torch.float64 else torch.float32
    ratios = torch.stack([model.get_valid_ratio(own, dtype=exact) for own in masks], 1)
    encoded = model.encoder(
        inputs_embeds=_flat(maps),
        attention_mask=seen,
        spatial_position_embeddings=_flat(positions),
        valid_ratios=ratios,
        **common,
    ).last_hidden_state
    with torch.autocast(mask.device.type, enabled=False):
        places, queries = (
            half[None].expand(encoded.shape[0], -1, -1)
            for half in model.query_position_embeddings.weight.split(encoded.shape[-1], 1)
        )
        start = model.reference_points(places).sigmoid()
        found = model.decoder(
            inputs_embeds=queries,
            object_queries_position_embeddings=places,
            encoder_hidden_states=encoded.to(exact),
            encoder_attention_mask=seen,
            reference_points=start,
            valid_ratios=ratios,
            **common,
        )
        states = found.intermediate_hidden_states.transpose(0, 1)
        before = [start, *found.intermediate_reference_points.unbind(1)[:-1]]
        logits = torch.stack([head(each) for head, each in zip(net.class_embed, states)])
        boxes = torch.stack([_moved(head(each), own) for head, each, own in zip(net.bbox_embed, states, before)])
    return states, logits, boxes


def places(spatial_shapes_list: Sequence[tuple[int, int]], valid_ratios: Tensor, device: torch.device) -> Tensor:
    """Where on each of n maps the cells of all of them are, (B, Σ h·w, n, 2) x y as shares of it, of the `valid_ratios`
    (B, n, 2) of their sides that are no padding."""
    centres = []
    for level, (height, width) in enumerate(spatial_shapes_list):
        y, x = (torch.arange(side, device=device).to(valid_ratios.dtype) + 0.5 for side in (height, width))
        x = x[None] / (valid_ratios[:, level, :1] * width)
        y = y[None] / (valid_ratios[:, level, 1:] * height)
        shape = (-1, height, width)
        centres.append(torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], -1).flatten(1, 2))
    return torch.cat(centres, 1)[:, :, None] * valid_ratios[:, None]


def _flat(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, D, h, w) as one row of cells, (B, Σ h·w, D)."""
    return torch.cat([each.flatten(2).transpose(1, 2) for each in maps], 1)


def _moved(steps: Tensor, places: Tensor) -> Tensor:
    """Boxes (B, Q, 4) that are `steps`, in logits, from points (B, Q, 2) or boxes (B, Q, 4)."""
    from transformers.models.deformable_detr.modeling_deformable_detr import inverse_sigmoid

    return (steps + nn.functional.pad(inverse_sigmoid(places), (0, 4 - places.shape[-1]))).sigmoid()
