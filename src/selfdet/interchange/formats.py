"""What weights of other programs look like: where in a file the network stands, and what tells the formats apart.

A table, so that the code, the command line and docs/how-to-weights.md say the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

# The keys, for the command line.
FormatKey = Literal[
    "auto",
    "torchvision",
    "timm",
    "moco",
    "densecl",
    "openselfsup",
    "mmselfsup",
    "mmpretrain",
    "swav",
    "pixpro",
    "byol",
    "dino",
    "simmim",
    "mae",
    "lightly",
    "detectron2",
    "mmdet",
    "aligndet",
    "transformers",
]


@dataclass(frozen=True)
class Format:
    """How a program names what it saves.

    `prefixes`: what may stand before the backbone's own names, the first that the file has. `signs`: regular
    expressions; names of which each matches one tell the format where nobody says it. `containers`: keys under which
    the tensors may stand, before the usual ones. `library` and `networks` bound what the backbone can be.
    `taken` and `left`: for the table of the documentation.
    """

    taken: str
    left: str
    prefixes: tuple[str, ...]
    signs: tuple[str, ...]
    containers: tuple[str, ...] = ()
    networks: tuple[str, ...] = ("ResNet",)
    library: str | None = None


USUAL_CONTAINERS = ("state_dict", "model", "network")
NO_FORMAT = "unknown"
DETECTOR_FORMATS = ("mmdet", "aligndet", "transformers")
SHARED_CONTAINERS = (*USUAL_CONTAINERS, "blobs")  # those that don't tell a format
CLASSIFIER = "the classifier"
MM = Format(
    "the backbone, with `backbone.` or, where it was extracted, without",
    "neck, head, momentum encoder, queues; taken with `--part pretraining`",
    ("module.backbone.", "backbone.", ""),
    (r"(module\.)?backbone\.(conv1|patch_embed|stem|layer1)",),
    networks=("ResNet", "Swin"),
)
OPENSELFSUP = Format(
    "the encoder, also of a whole checkpoint (`encoder_q.0.` or `backbone.`)",
    "heads, key encoder, queues; taken with `--part pretraining`",
    ("module.encoder_q.0.", "encoder_q.0.", "module.backbone.", "backbone.", ""),
    (r"(module\.)?encoder_q\.0\.",),
)

MMDET = Format(
    "a DETR, RetinaNet, FCOS, Faster or Mask R-CNN, equal in what it finds; of any other detector the backbone "
    "(`--part backbone`)",
    "nothing",
    ("backbone.",),
    (r"backbone\.", r"(roi_head|bbox_head|rpn_head)\."),
    networks=("ResNet", "Swin"),
)

# In the order in which they are tried where nobody says which one it is: the telling names first.
FORMATS: dict[str, Format] = {
    "aligndet": Format(
        "backbone, pyramid, RPN and heads of the RetinaNet, FCOS or R-CNN that it pre-trained; of another detector the "
        "backbone",
        "the teacher, and the last layers, which start afresh",
        ("online_backbone.backbone.", "backbone."),
        (r"online_backbone\.backbone\.",),
        networks=("ResNet", "Swin"),
    ),
    "mmdet": MMDET,
    "transformers": Format(
        "the folder of a DETR, Deformable DETR or RT-DETR over a ResNet or a network of timm, equal in what it finds; "
        "a ResNet by itself, in a classifier or, with `--part backbone`, in a detector",
        CLASSIFIER,
        ("model.backbone.conv_encoder.model.", "model.backbone.model.", "resnet.", ""),
        (r"model\.backbone\.(conv_encoder\.)?model\.|(resnet\.)?embedder\.embedder\.",),
    ),
    "densecl": Format(
        OPENSELFSUP.taken, OPENSELFSUP.left, OPENSELFSUP.prefixes, (r"(module\.)?encoder_q\.0\.", r"queue2$")
    ),
    "openselfsup": OPENSELFSUP,
    "moco": Format(
        "the query encoder (`module.encoder_q.`)",
        "its head, the key encoder, the queue; taken with `--part pretraining`",
        ("module.encoder_q.", "encoder_q."),
        (r"(module\.)?encoder_q\.(conv1|layer1)\.",),
    ),
    "pixpro": Format(
        "the encoder (`module.encoder.`)",
        "projectors, key encoder, the propagation module",
        ("module.encoder.", "encoder."),
        (r"(module\.)?encoder\.(conv1|layer1)\.", r"(module\.)?(encoder_k|projector)\."),
    ),
    "swav": Format(
        "the network (`module.`)",
        "projection head, prototypes",
        ("module.", ""),
        (r"module\.(conv1|layer1)\.", r"module\.(projection_head|prototypes)\."),
    ),
    "dino": Format(
        "the teacher's backbone, or the extracted one",
        "the student, the head",
        ("module.backbone.", "backbone.", ""),
        (r"(module\.)?backbone\.", r"(module\.)?head\.(mlp|last_layer)"),
        containers=("teacher",),
        networks=("ResNet", "ViT"),
    ),
    "simmim": Format(
        "the encoder (`encoder.`), a Swin",
        "the decoder, the mask token",
        ("module.encoder.", "encoder."),
        (r"(module\.)?encoder\.layers\.0\.blocks\.0\.attn\.", r"(module\.)?(decoder\.|encoder\.mask_token)"),
        networks=("Swin",),
    ),
    "mae": Format(
        "the encoder, a ViT, also the extracted one",
        "the decoder, the mask token",
        ("module.", ""),
        (r"(module\.)?patch_embed\.proj\.", r"(module\.)?decoder_(embed|blocks|pred)\."),
        networks=("ViT",),
    ),
    "byol": Format(
        "the online encoder, its modules by name or by number",
        "projector, predictor, target network",
        (
            *("module.online_encoder.net.", "online_encoder.net.", "module.online_encoder.", "online_encoder."),
            *("online_network.encoder.", "module.online_network.encoder.", "online_net.0.", "encoder."),
        ),
        (r"(module\.)?(online_encoder|online_network|online_net)\.",),
        containers=("online_network_state_dict",),
    ),
    "lightly": Format(
        "the backbone, its modules by name or by number (`backbone.0.`), also of a Lightning checkpoint",
        "heads, momentum networks",
        ("backbone.", "model.backbone."),
        (r"(model\.)?backbone\.(0\.weight|4\.0\.conv1)",),
        networks=("ResNet", "ViT"),
    ),
    "detectron2": Format(
        "a ResNet of its `.pkl` files, of MoCo's converter and of Caffe2, or with `--part detector` a Faster or Mask "
        "R-CNN over one; `--pixels` has to be said",
        "the classifier, a detector's neck and heads",
        ("backbone.bottom_up.", "bottom_up.", ""),
        (r"(backbone\.)?(bottom_up\.)?stem\.conv1\.weight$|conv1_w$",),
        containers=("model", "blobs"),
    ),
    "mmselfsup": MM,
    "mmpretrain": Format(MM.taken, CLASSIFIER, MM.prefixes, MM.signs, networks=MM.networks),
    "torchvision": Format(
        "a ResNet, ResNeXt or wide ResNet", CLASSIFIER, ("",), (r"layer1\.0\.conv1\.weight",), library="torchvision"
    ),
    "timm": Format(
        "any network: ResNets, ViTs and Swins are told by their shapes, others named with `--backbone`",
        CLASSIFIER,
        ("",),
        (r"(patch_embed\.proj|conv_stem|stem\.)",),
        networks=("ResNet", "Swin", "ViT"),
        library="timm",
    ),
}


def tensors_in(content: Mapping[str, Any], key: str) -> tuple[Mapping[str, Any], str]:
    """The mapping of names to tensors in a file's content, as the format `key` keeps it, and the container's name."""
    own = FORMATS[key].containers if key in FORMATS else ()
    for name in (*own, *USUAL_CONTAINERS):
        if isinstance(content.get(name), Mapping):
            return content[name], name
    return content, ""


def recognise(content: Mapping[str, Any]) -> str | None:
    """The key of the format that a file's names tell, if they tell one."""
    for key, known in FORMATS.items():
        if any(isinstance(content.get(name), Mapping) for name in known.containers if name not in SHARED_CONTAINERS):
            return key
        names = [name for name in tensors_in(content, key)[0] if isinstance(name, str)]
        if all(any(re.match(sign, name) for name in names) for sign in known.signs):
            return key
    return None


def prefix_of(names: Iterable[str], key: str) -> str | None:
    """What stands before the backbone's names in a file of this format; None where nothing that it may be does."""
    listed = list(names)
    return next((each for each in FORMATS[key].prefixes if any(name.startswith(each) for name in listed)), None)
