"""What we use of transformers' DETR beyond its documented interface: a contract test for each. Needs the extra `detr`.

Legend: B images, Q queries, L decoder layers, D channels, K classes, N boxes of an image; (h, w) the maps' cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selfdet.errors import UserError
from selfdet.models.backbones import Backbone

if TYPE_CHECKING:
    from transformers import DetrForObjectDetection

# Of a cost that a pair of a query and a box has, and of the losses: class, L1 and generalised IoU.
CLASS, L1, GIOU = 1, 5, 2


class LastMap(nn.Module):
    """A backbone in the place of the library's own, its weights in `.model` under their own names."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.model = backbone.net
        object.__setattr__(self, "backbone", backbone)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The last map (B, C, h, w) of images (B, 3, H, W), with the mask (B, h, w) of what is no padding."""
        backbone: Any = self.backbone
        last = list(backbone.maps(self.model, pixel_values).values())[-1]
        return [(last, shrunk(pixel_mask, last.shape[-2:]))]


def shrunk(mask: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """A mask (B, H, W) of pixels as one of the cells (B, h, w) of a map, by the pixel at each cell's first corner."""
    return nn.functional.interpolate(mask[None].float(), size=tuple(size))[0].bool()


def detr_network(
    backbone: Backbone, num_classes: int, queries: int, layers: int, no_object: float
) -> DetrForObjectDetection:
    """transformers' DETR over `backbone`, with `queries` and as many encoder as decoder layers, at random.

    `no_object`: weight of queries without an object in the class loss.
    Raises: UserError without transformers.
    """
    try:
        from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig
    except ImportError:
        raise UserError("detr needs transformers, which is not installed", "pip install 'selfdet[detr]'") from None
    # The library builds a backbone of its own, whatever is done: the smallest.
    settings: dict[str, Any] = {"out_features": ["stage1"]}
    least = ResNetConfig(embedding_size=1, hidden_sizes=[1], depths=[1], layer_type="basic", **settings)
    settings = {"num_labels": num_classes}
    config = DetrConfig(
        backbone_config=least,
        **settings,
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
    net = DetrForObjectDetection(config)
    net.model.backbone = LastMap(backbone)
    net.model.input_projection = nn.Conv2d(backbone.channels[-1], config.d_model, 1)
    # As in the paper; the library's own start is that of language models.
    for part in (net.model.encoder, net.model.decoder):
        for value in part.parameters():
            if value.dim() > 1:
                nn.init.xavier_uniform_(value)
    return net


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
    places = model.query_position_embeddings.weight[None].repeat(len(features), 1, 1)
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


class Matched:
    """The library's own matching and losses of the queries of one layer.

    `logits` (B, Q, K + 1), the last of no object; `boxes` (B, Q, 4) and `targets`' "boxes" (N, 4) cx cy w h as shares
    of their image, "class_labels" (N,) 0…K−1.
    """

    def __init__(
        self, net: DetrForObjectDetection, logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]]
    ) -> None:
        from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

        self.outputs, self.targets = {"logits": logits, "pred_boxes": boxes}, targets
        matcher = HungarianMatcher(class_cost=CLASS, bbox_cost=L1, giou_cost=GIOU)
        weight, classes = net.config.eos_coefficient, logits.shape[-1] - 1
        self.criterion = ImageLoss(matcher=matcher, num_classes=classes, eos_coef=weight, losses=["labels", "boxes"])
        self.criterion.to(logits.device, logits.dtype)
        detached = {name: value.detach() for name, value in self.outputs.items()}
        self.indices: list[tuple[Tensor, Tensor]] = matcher(detached, targets)

    def rows(self) -> Tensor:
        """Which target of its image each query has, (B, Q) int64, −1 for none."""
        rows = torch.full(self.outputs["logits"].shape[:2], -1)
        for row, (queries, targets) in zip(rows, self.indices):
            row[queries] = targets
        return rows.to(self.outputs["logits"].device)

    def losses(self) -> dict[str, Tensor]:
        """ "loss_class", "loss_bbox" (L1) and "loss_giou", weighted: scalars, on the graph without targets too."""
        count = max(1, sum(len(target["boxes"]) for target in self.targets))
        found: dict[str, Tensor] = {}
        for kind in ("labels", "boxes"):
            found.update(self.criterion.get_loss(kind, self.outputs, self.targets, self.indices, count))
        return {
            "loss_class": CLASS * found["loss_ce"],
            "loss_bbox": L1 * found["loss_bbox"],
            "loss_giou": GIOU * found["loss_giou"],
        }
