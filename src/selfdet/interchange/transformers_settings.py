"""What a folder of transformers says of its detector: the network, its backbone, pixels and classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm

from selfdet.data.untrusted import is_integer, parse_json
from selfdet.errors import UserError, shown
from selfdet.interchange.architectures import RESNETS
from selfdet.interchange.imported import BACKBONE_ALONE
from selfdet.interchange.mmdet_shared import IMAGE_SIZE
from selfdet.interchange.notes import check_note
from selfdet.models.backbones import Backbone, torchvision_resnets

CONFIG, PROCESSOR, DESCRIPTION = "config.json", "preprocessor_config.json", "detector.json"
KINDS = {
    "detr": ("detr", "DetrForObjectDetection"),
    "deformable_detr": ("deformable_detr", "DeformableDetrForObjectDetection"),
    "rt_detr": ("rtdetr", "RTDetrForObjectDetection"),
}
AGAIN = "Save it again with transformers' save_pretrained"
# Settings that have nothing to do with the network, and much with what is fetched or executed.
UNWANTED = ("use_pretrained_backbone", "auto_map", "quantization_config")


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object in a file; empty where there is no file. Raises: UserError."""
    if not file.is_file():
        return {}
    try:
        content = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {error}", AGAIN) from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds {shown(content)}, expected settings by name", AGAIN)
    return content


def own_note(folder: Path) -> dict[str, Any]:
    """What `export --to transformers` wrote down beside the network; empty of any other folder."""
    described = read_object(folder / DESCRIPTION)
    note: dict[str, Any] = {
        each: described[each] for each in ("classes", "category_ids", "image_size", "options") if each in described
    }
    check_note(note, folder / DESCRIPTION)
    body = described.get("backbone")
    return {**note, "body": body} if isinstance(body, dict) and "options" in note else {}


def told_kind(folder: Path, settings: Mapping[str, Any]) -> tuple[str, str]:
    """Our key and transformers' class of the network."""
    told, built = settings.get("model_type"), settings.get("architectures")
    if told not in KINDS:
        raise UserError(f"{folder} is a {shown(told)} of transformers; taken are {', '.join(KINDS)}", BACKBONE_ALONE)
    key, kind = KINDS[told]
    if built not in (None, [], [kind]):
        raise UserError(f"{folder} is a {shown(built)}, expected {kind}", BACKBONE_ALONE)
    return key, kind


def library_config(transformers: Any, kind: str, settings: Mapping[str, Any], folder: Path) -> Any:
    """The library's configuration; nothing is asked of a hub, whatever the file names."""
    given = {each: value for each, value in settings.items() if each not in UNWANTED}
    body = given.get("backbone_config")
    if not body and given.get("use_timm_backbone") and isinstance(given.get("backbone"), str):
        # As versions before 5 wrote it down.
        indices = (given.get("backbone_kwargs") or {}).get("out_indices", [1, 2, 3, 4])
        body = {"model_type": "timm_backbone", "backbone": given["backbone"], "out_indices": indices}
    if not isinstance(body, dict) or body.get("model_type") not in ("timm_backbone", "resnet"):
        told = body.get("model_type") if isinstance(body, dict) else given.get("backbone")
        raise UserError(
            f"{folder} has the backbone {shown(told)}, which selfdet does not have; taken are timm_backbone and resnet",
            "Take a detector over a network of timm or a ResNet",
        )
    if body["model_type"] == "timm_backbone" and not timm.is_model(str(body.get("backbone"))):
        raise UserError(f"{folder} has the backbone {shown(body.get('backbone'))}, which is none of timm's", AGAIN)
    for each in ("backbone", "backbone_kwargs", "use_timm_backbone"):
        given.pop(each, None)
    wanted = getattr(transformers, kind).config_class
    with readable(folder / CONFIG):
        return wanted.from_dict({**given, "backbone_config": {**body, "use_pretrained_backbone": False}})


def backbone_name(folder: Path, body: Any, own: Mapping[str, Any]) -> str:
    """Our name of a folder's backbone."""
    if body.model_type == "timm_backbone":
        told, plain = str(body.backbone), str(body.backbone).partition(".")[0]
        if plain not in torchvision_resnets():
            return told
        return f"timm/{told}" if own and own["body"].get("library") == "timm" else plain
    shape = (body.layer_type == "bottleneck", tuple(body.depths), body.embedding_size, 64)
    usual = not body.downsample_in_bottleneck and not body.downsample_in_first_stage
    if shape not in RESNETS or not usual:
        raise UserError(f"{folder} has a ResNet of other depths, widths or strides than torchvision's", BACKBONE_ALONE)
    return RESNETS[shape]


def class_names(file: Path, told: Sequence[str], given: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The names of all classes, those `given` or `told`, each once, and a line where that took a number."""
    if given and len(given) != len(told):
        raise UserError(f"{file} has {len(told)} classes, and --classes names {len(given)}", "Name each with --classes")
    listed = list(given or told)
    names = [f"{each} ({row})" if listed.count(each) > 1 else each for row, each in enumerate(listed)]
    changed = sum(one != other for one, other in zip(names, listed))
    if len(set(names)) != len(names) or (changed and given):
        raise UserError(f"{file}: two classes are called {shown(max(listed, key=listed.count))}", "Give --classes")
    return names, [f"{changed} classes with a name of others have their number behind it"] if changed else []


def long_side(about: Mapping[str, Any]) -> int:
    """The long side (px) that a processor makes images."""
    sizes = about.get("size")
    sides = [each for each in sizes.values() if is_integer(each)] if isinstance(sizes, dict) else []
    return max(sides, default=IMAGE_SIZE)


def check_pixels(folder: Path, about: Mapping[str, Any], backbone: Backbone) -> None:
    """Raises: UserError where a processor makes other pixels than the backbone's library does."""
    if not about:
        return
    told = {"mean": about.get("image_mean"), "std": about.get("image_std")}
    ours = {"mean": list(backbone.mean), "std": list(backbone.std)}
    plain = about.get("do_normalize") is False or about.get("do_rescale") is False
    if plain or any(not _near(told[each], ours[each]) for each in ours):
        given = "not normalised" if plain else f"normalised with {shown(told)}"
        raise UserError(f"{folder}: its pixels are {given}; those of {backbone.name} with {ours}", AGAIN)


def _near(one: Any, other: Sequence[float]) -> bool:
    return (
        isinstance(one, list)
        and len(one) == len(other)
        and all(isinstance(a, (int, float)) and abs(a - b) < 1e-5 for a, b in zip(one, other))
    )


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Raises: UserError for whatever the library says to a file that it can't make anything of."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of settings that are anybody's the library raises anything
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file}: transformers cannot make a network of it ({first[:160]})", AGAIN) from None
