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
    for layer in model.encoder.aifi:
        layer.position_embedding = Positions(config.encoder_hidden_dim, config.positional_encoding_temperature)
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


def decoded(net: RTDetrForObjectDetection, maps: Sequence[Tensor]) -> Any:
    """What the library's decoder gives of `encoded` maps: `intermediate_hidden_states` (B, L, Q, D),
    `intermediate_logits` (B, L, Q, K), `intermediate_reference_points`, the layers' boxes (B, L, Q, 4); and logits
    (B, Q, K) and boxes (B, Q, 4) of the cells that become queries.

    It runs in full precision: each layer goes by the boxes of the one before. As the library's own model does it, which
    would tie a graph to the number of images it was made with.
    """
    model: Any = net.model
    with torch.autocast(maps[0].device.type, enabled=False):
        sources = [layer(each) for layer, each in zip(model.decoder_input_proj, _exact(maps))]
        shapes = tuple((each.shape[-2], each.shape[-1]) for each in sources)
        cells = torch.cat([each.flatten(2).transpose(1, 2) for each in sources], 1)
        anchors, inside = model.generate_anchors(shapes, device=cells.device, dtype=cells.dtype)
        memory = model.enc_output(inside.to(cells.dtype) * cells)
        logits, boxes = model.enc_score_head(memory), model.enc_bbox_head(memory) + anchors
        best = logits.max(-1).values.topk(model.config.num_queries, 1).indices[..., None]
        logits, boxes, queries = (
            each.gather(1, best.expand(-1, -1, each.shape[-1])) for each in (logits, boxes, memory)
        )
        sizes = torch.tensor(shapes, device=cells.device)
        result = model.decoder(
            inputs_embeds=queries.detach(),
            encoder_hidden_states=cells,
            encoder_attention_mask=None,
            reference_points=boxes.detach(),
            spatial_shapes=sizes,
            spatial_shapes_list=list(shapes),
            level_start_index=torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]]),
        )
        return result, (logits, boxes.sigmoid())


def noisily_decoded(net: RTDetrForObjectDetection, maps: Sequence[Tensor], targets: list[dict[str, Tensor]]) -> Any:
    """What the library's own model gives of `encoded` maps, with all that `decoded` has, and `enc_topk_logits` and
    `enc_topk_bboxes` of the choice; in training mode with noisy boxes of the `targets` ("boxes", "class_labels")
    before the queries, of which `denoising_meta_values` says which and how many."""
    from transformers.modeling_outputs import BaseModelOutput

    with torch.autocast(maps[0].device.type, enabled=False):
        exact = _exact(maps)
        return net.model(
            pixel_values=None,
            inputs_embeds=exact[0],  # looked at for its size and device alone, where the encoder has run
            encoder_outputs=BaseModelOutput(last_hidden_state=exact),  # type: ignore[arg-type]
            labels=targets,
        )


def _exact(maps: Sequence[Tensor]) -> list[Tensor]:
    return [each if each.dtype == torch.float64 else each.float() for each in maps]


class Positions(nn.Module):
    """The library's table of positions, made for each size anew: its own ties a graph to the sizes it was made with."""

    def __init__(self, width: int, temperature: int) -> None:
        super().__init__()
        self.width, self.temperature = width, temperature

    def forward(self, width: int, height: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(1, height · width, D) of a map's cells."""
        from transformers.models.rt_detr.modeling_rt_detr import build_2d_sinusoidal_position_embedding

        settings: dict[str, Any] = {"embed_dim": self.width, "temperature": self.temperature}
        return build_2d_sinusoidal_position_embedding(height, width, device=device, dtype=dtype, **settings)[None]
