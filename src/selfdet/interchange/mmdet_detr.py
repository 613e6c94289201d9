"""DETR as mmdet names it: the projections of queries, keys and values are one tensor there, and three here.

The rest is alike: sine positions, norms after the layers, one last norm for the queries of every layer, boxes as shares
of the image without its padding. mmdet 2 kept the transformer in the head, mmdet 3 keeps it beside it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from selfdet.errors import UserError
from selfdet.interchange.architectures import State
from selfdet.interchange.mmdet_shared import Given, Reading, Table, refuse_settings, renamed_by
from selfdet.interchange.training_settings import IS

BODY = "model.backbone.model."  # before the backbone's own names in our detector
CLASSES = "class_labels_classifier."  # of them the last is no object, there as here
FUSED = re.compile(r"(.*)\.in_proj_(weight|bias)")
RENAMED: Table = (
    # mmdet 2
    (r"bbox_head\.transformer\.", ""),
    (r"bbox_head\.query_embedding\.", "query_embedding."),
    (r"bbox_head\.input_proj\.", "neck.convs.0.conv."),
    (r"(.*\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"(.*\.layers\.\d+)\.attentions\.1\.", r"\1.cross_attn."),
    (r"(.*\.layers\.\d+)\.ffns\.0\.", r"\1.ffn."),
    # both
    (r"query_embedding\.", "model.query_position_embeddings."),
    (r"neck\.convs\.0\.conv\.", "model.input_projection."),
    (r"(encoder|decoder)\.", r"model.\1."),
    (r"model\.decoder\.post_norm\.", "model.decoder.layernorm."),
    (r"(.*)\.self_attn\.attn\.", r"\1.self_attn."),
    (r"(.*)\.cross_attn\.attn\.", r"\1.encoder_attn."),
    (r"(.*)\.out_proj\.", r"\1.o_proj."),
    (r"(.*)\.ffn\.layers\.0\.0\.", r"\1.mlp.fc1."),
    (r"(.*)\.ffn\.layers\.1\.", r"\1.mlp.fc2."),
    (r"(.*)\.norms\.0\.", r"\1.self_attn_layer_norm."),
    (r"(model\.encoder.*)\.norms\.1\.", r"\1.final_layer_norm."),
    (r"(model\.decoder.*)\.norms\.1\.", r"\1.encoder_attn_layer_norm."),
    (r"(model\.decoder.*)\.norms\.2\.", r"\1.final_layer_norm."),
    (r"bbox_head\.fc_cls\.", CLASSES),
    (r"bbox_head\.reg_ffn\.layers\.0\.0\.", "bbox_predictor.layers.0."),
    (r"bbox_head\.reg_ffn\.layers\.1\.", "bbox_predictor.layers.1."),
    (r"bbox_head\.fc_reg\.", "bbox_predictor.layers.2."),
)
# Settings of a network that has these names, and is another one.
SETTINGS: Table = (
    (rf"use_sigmoid{IS}(True|true)", "classes are told by sigmoids"),
    (rf"num_heads{IS}(?!8\b)\d+", "attention has other than 8 heads"),
    (rf"normalize{IS}(False|false)", "positions are not normalised"),
)


def read_detr(given: Given) -> Reading | None:
    """The DETR that these names, of mmdet, are of; None where they are of none.

    Raises: UserError for other transformers of the same names: layers of another number, settings of another network.
    """
    sign = r"(bbox_head\.transformer\.)?encoder\.layers\.0\.(attentions|self_attn)\."
    if given.pretrained or not any(re.match(sign, name) for name in given.state):
        return None
    refuse_settings(given.path, given.text, SETTINGS)
    state = _renamed(given.state)
    classes = len(state.get(f"{CLASSES}bias", ())) - 1
    options = {**given.own.get("options", {}), **_options(given.path, state)}
    return Reading("detr", state, classes, options, body=BODY)


def _renamed(state: State) -> State:
    """mmdet's tensors by our names."""
    made: State = {}
    for name, value in state.items():
        name = renamed_by(RENAMED, name)
        fused = FUSED.fullmatch(name)
        if fused is None or len(value) % 3:
            made[name] = value
            continue
        for part, own in zip("qkv", value.chunk(3)):
            made[f"{fused[1]}.{part}_proj.{fused[2]}"] = own
    return made


def _options(path: Path, state: State) -> dict[str, Any]:
    """What the builder has to know, of our names and shapes."""
    queries: Tensor | None = state.get("model.query_position_embeddings.weight")
    depths = {
        kind: len({each[2] for name in state if (each := re.match(rf"model\.({kind})\.layers\.(\d+)\.", name))})
        for kind in ("encoder", "decoder")
    }
    if queries is None or queries.dim() != 2 or depths["encoder"] != depths["decoder"] or not depths["encoder"]:
        told = f"{depths['encoder']} encoder and {depths['decoder']} decoder layers"
        raise UserError(
            f"{path} is another transformer than DETR: {told}, {'no' if queries is None else len(queries)} queries",
        )
    return {"queries": len(queries), "layers": depths["encoder"]}
