"""DETR in mmdet's conventions, written from its documentation in the plainest way: the judge of our import."""

from __future__ import annotations

import math

import torch
import torchvision
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]
WIDTH, HEADS = 256, 8


def detr_state(classes: int, queries: int, layers: int, version: int = 3) -> State:
    """A DETR over a ResNet-18 by the names of mmdet 2 or 3."""
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * (0.4 if len(shape) == 1 else shape[1] ** -0.5)

    made: State = {"query_embedding.weight": drawn(queries, WIDTH) * 16, "neck.convs.0.conv.bias": drawn(WIDTH)}
    made["neck.convs.0.conv.weight"] = drawn(WIDTH, 512, 1, 1) * 10  # what a network at random sees differs little
    for part, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "cross_attn"])):
        for layer in range(layers):
            own = f"{part}.layers.{layer}."
            for each in attentions:
                made |= {f"{own}{each}.attn.in_proj_weight": drawn(3 * WIDTH, WIDTH) * 2}
                made |= {f"{own}{each}.attn.in_proj_bias": drawn(3 * WIDTH)}
                made |= {f"{own}{each}.attn.out_proj.weight": drawn(WIDTH, WIDTH)}
                made |= {f"{own}{each}.attn.out_proj.bias": drawn(WIDTH)}
            made |= {f"{own}ffn.layers.0.0.weight": drawn(2048, WIDTH), f"{own}ffn.layers.0.0.bias": drawn(2048)}
            made |= {f"{own}ffn.layers.1.weight": drawn(WIDTH, 2048), f"{own}ffn.layers.1.bias": drawn(WIDTH)}
            for norm in range(len(attentions) + 1):
                made |= {f"{own}norms.{norm}.weight": 1 + drawn(WIDTH), f"{own}norms.{norm}.bias": drawn(WIDTH)}
    made |= {"decoder.post_norm.weight": 1 + drawn(WIDTH), "decoder.post_norm.bias": drawn(WIDTH)}
    made |= {"bbox_head.fc_cls.weight": drawn(classes + 1, WIDTH) * 4, "bbox_head.fc_cls.bias": drawn(classes + 1)}
    for layer in ("0.0", "1"):
        made |= {f"bbox_head.reg_ffn.layers.{layer}.weight": drawn(WIDTH, WIDTH)}
        made |= {f"bbox_head.reg_ffn.layers.{layer}.bias": drawn(WIDTH)}
    made |= {"bbox_head.fc_reg.weight": drawn(4, WIDTH) * 8, "bbox_head.fc_reg.bias": drawn(4)}
    if version == 2:
        made = {_of_mmdet_2(name): value for name, value in made.items()}
    torch.manual_seed(4)
    body = torchvision.models.resnet18().state_dict()
    return {**made, **{f"backbone.{name}": value for name, value in body.items() if not name.startswith("fc.")}}


def _of_mmdet_2(name: str) -> str:
    for theirs, old in (
        ("query_embedding.", "bbox_head.query_embedding."),
        ("neck.convs.0.conv.", "bbox_head.input_proj."),
        ("encoder.", "bbox_head.transformer.encoder."),
        ("decoder.", "bbox_head.transformer.decoder."),
    ):
        if name.startswith(theirs):
            name = old + name.removeprefix(theirs)
    return (
        name.replace(".self_attn.", ".attentions.0.")
        .replace(".cross_attn.", ".attentions.1.")
        .replace(".ffn.", ".ffns.0.")
    )


class DETRPeer:
    """Finds objects with a state of mmdet 3."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.resnet = torchvision.models.resnet18().eval()
        own = {name.removeprefix("backbone."): v for name, v in state.items() if name.startswith("backbone.")}
        self.resnet.load_state_dict(own, strict=False)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, (WIDTH,), self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def ffn(self, x: Tensor, name: str) -> Tensor:
        return x + self.linear(self.linear(x, f"{name}.layers.0.0").relu(), f"{name}.layers.1")

    def attend(self, query: Tensor, key: Tensor, value: Tensor, name: str, seen: Tensor | None) -> Tensor:
        """Of one image: (Q, D) queries, (N, D) keys and values; `seen` (N,) bool, the keys that are no padding."""
        weight, bias = self.state[f"{name}.attn.in_proj_weight"], self.state[f"{name}.attn.in_proj_bias"]
        parts = [functional.linear(x, w, b) for x, w, b in zip((query, key, value), weight.chunk(3), bias.chunk(3))]
        found = []
        for head in range(HEADS):
            q, k, v = (each[:, 32 * head : 32 * head + 32] for each in parts)
            likeness = q @ k.T / math.sqrt(32)
            if seen is not None:
                likeness = likeness.masked_fill(~seen, -torch.inf)
            found.append(likeness.softmax(1) @ v)
        return self.linear(torch.cat(found, 1), f"{name}.attn.out_proj")

    @staticmethod
    def positions(seen: Tensor) -> Tensor:
        """(h · w, D) of the cells of a map, of which `seen` (h, w) are no padding; what padding has is never used."""
        rows, height, width = [], int(seen[:, 0].sum()), int(seen[0].sum())
        for y in range(seen.shape[0]):
            for x in range(seen.shape[1]):
                row = []
                for at, whole in ((y + 1, height), (x + 1, width)):
                    angle = at / (whole + 1e-6) * 2 * math.pi
                    for place in range(WIDTH // 2):
                        part = angle / 10000 ** (2 * (place // 2) / (WIDTH // 2))
                        row.append(math.sin(part) if place % 2 == 0 else math.cos(part))
                rows.append(row)
        return torch.tensor(rows)

    def find(self, tensor: Tensor, sizes: list[tuple[int, int]]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Boxes (Q, 4) xyxy px, scores (Q,) and labels (Q,) of each image of a padded tensor."""
        net = self.resnet
        maps = net.layer4(net.layer3(net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(tensor))))))))
        maps = functional.conv2d(maps, self.state["neck.convs.0.conv.weight"], self.state["neck.convs.0.conv.bias"])
        found = []
        for features, (height, width) in zip(maps, sizes):
            seen = torch.zeros(tensor.shape[-2:])
            seen[:height, :width] = 1
            cells = functional.interpolate(seen[None, None], features.shape[-2:])[0, 0].bool()
            place, flat = self.positions(cells), cells.flatten()
            x = features.flatten(1).T
            layers = sum(name.startswith("encoder.layers.") and name.endswith("norms.0.bias") for name in self.state)
            for layer in range(layers):
                own = f"encoder.layers.{layer}."
                x = self.norm(x + self.attend(x + place, x + place, x, f"{own}self_attn", flat), f"{own}norms.0")
                x = self.norm(self.ffn(x, f"{own}ffn"), f"{own}norms.1")
            named = self.state["query_embedding.weight"]
            q = torch.zeros_like(named)
            for layer in range(layers):
                own = f"decoder.layers.{layer}."
                q = self.norm(q + self.attend(q + named, q + named, q, f"{own}self_attn", None), f"{own}norms.0")
                q = self.norm(q + self.attend(q + named, x + place, x, f"{own}cross_attn", flat), f"{own}norms.1")
                q = self.norm(self.ffn(q, f"{own}ffn"), f"{own}norms.2")
            q = self.norm(q, "decoder.post_norm")
            scores, labels = self.linear(q, "bbox_head.fc_cls").softmax(1)[:, :-1].max(1)
            hidden = self.linear(self.linear(q, "bbox_head.reg_ffn.layers.0.0").relu(), "bbox_head.reg_ffn.layers.1")
            cx, cy, w, h = self.linear(hidden.relu(), "bbox_head.fc_reg").sigmoid().unbind(1)
            boxes = torch.stack(
                [(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height], 1
            )
            boxes[:, 0::2], boxes[:, 1::2] = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
            order = scores.argsort(descending=True)
            found.append((boxes[order], scores[order], labels[order]))
        return found
