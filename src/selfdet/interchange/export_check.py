"""Whether an exported folder works without selfdet: rebuilt in a process that cannot import it, results compared."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from selfdet.data.labelled import resize_sample
from selfdet.data.pixels import normalise
from selfdet.data.sample import plain_sample
from selfdet.detectors.base import Detector
from selfdet.detectors.zoo import DETECTORS
from selfdet.errors import UserError
from selfdet.interchange.weights import differing, read_weights, write_safetensors
from selfdet.models.backbones import Backbone, build_backbone, build_unfilled, evaluating
from selfdet.models.plain_vit import fitted_images, told_stride

BOX_TOLERANCE = 0.01  # px of the image; the same arithmetic in another process gives 0
SCORE_TOLERANCE = 1e-4
MASK_TOLERANCE = 0.05  # of the pixels of two masks, those that only one has
MAP_TOLERANCE = 1e-4  # of a map's largest value
# The last bit of a score can decide which of two boxes suppresses the other, or to which side of a half a pixel falls.
COUNTERPARTS = 0.98

STRANGER = """
import importlib.util, sys
sys.modules["selfdet"] = None  # from here on `import selfdet` fails
import torch
from safetensors.torch import load_file, save_file

program, inputs, outputs, threads, *words = sys.argv[1:]
torch.set_num_threads(int(threads))
spec = importlib.util.spec_from_file_location("exported", program)
exported = importlib.util.module_from_spec(spec)
spec.loader.exec_module(exported)
given, found = load_file(inputs), {}
with torch.no_grad():
"""

DETECT = """
    runs = 0
    for threshold in (None, 0.0):
        net = exported.build(score_threshold=threshold)
        for name in sorted(given):
            for key, value in net([given[name].float() / 255])[0].items():
                found[f"{runs}.{key}"] = value.contiguous()
            runs += 1
save_file(found, outputs)
"""

_TORCHVISION_MAPS = """
    from torchvision.models.feature_extraction import create_feature_extractor
    net = create_feature_extractor(exported.load().eval(), [f"layer{stage}" for stage in (1, 2, 3, 4)])
    maps = list(net(given["images"]).values())
save_file({str(level): features.contiguous() for level, features in enumerate(maps)}, outputs)
"""

_TIMM_MAPS = """
    import timm
    indices = list(timm.create_model(words[0], features_only=True, feature_cls="getter").out_indices)[-int(words[1]):]
    net = exported.load().eval()
    maps = net.forward_intermediates(given["images"], indices=indices, output_fmt="NCHW", intermediates_only=True)
save_file({str(level): features.contiguous() for level, features in enumerate(maps)}, outputs)
"""

MAPS = {"torchvision": _TORCHVISION_MAPS, "timm": _TIMM_MAPS}


class ExportMismatchError(RuntimeError):
    """What was written does not behave as what it was written from."""


def check_finite(state: dict[str, Tensor], source: str) -> None:
    """Raises: UserError when a tensor holds NaN or infinity: such a network finds nothing, whoever runs it."""
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(f"{source}: {name} holds values that are not finite", "Train again, with a lower --lr")


def check_detector(program: Path, weights: Path, detector: Detector, image_size: int) -> dict[str, float]:
    """Compare what a folder's `build()` finds in two images, one reduced and one enlarged, with the detector's own.

    Both at the detector's score threshold and at 0, where there are always detections; `image_size` is the long side
    (px) the detector works at. Returns the number of "detections" compared, and the largest "box_difference" (px of
    the images), "score_difference" and, of masks, "mask_difference" (1 − IoU) among those that have a counterpart.

    Raises: ExportMismatchError when the weights differ or under 98 % of the detections have a counterpart of the same
    class within 0.01 px and 0.0001 of score, with a mask of at least 0.95 IoU.
    """
    check_weights(weights, detector.net)
    images = {f"image{row}": image for row, image in enumerate(check_images(image_size))}
    answer = run_stranger(STRANGER + DETECT, program, images)
    samples = [resize_sample(plain_sample(tv_tensors.Image(images[name])), image_size) for name in sorted(images)]
    ours = [each.predict([sample])[0] for each in (detector, at_zero(detector)) for sample in samples]
    theirs = [{key: answer[f"{run}.{key}"] for key in found} for run, found in enumerate(ours)]
    return compare_detections(ours, theirs)


def check_backbone(program: Path, weights: Path, backbone: Backbone, library: str | None = None) -> dict[str, float]:
    """Compare the maps of a folder's `load()`, a network of `library` (the backbone's own if not given), with the
    backbone's, on two images of the library's usual size.

    Returns the number of "maps" and the "largest_difference" as a share of a map's largest value.
    Raises: ExportMismatchError when the weights differ or a map does by more than 0.0001 of its largest value.
    """
    check_weights(weights, backbone.net)
    return check_maps_of(program, backbone, STRANGER + MAPS[library or backbone.library])


def check_maps_of(program: Path, backbone: Backbone, script: str | None = None) -> dict[str, float]:
    """`check_backbone` without the weights file; `script`: what runs the program on "images", normalised, or on their
    "bytes", where not as its library does."""
    config: Any = getattr(backbone.net, "pretrained_cfg", {})
    _, height, width = config.get("input_size", (3, 224, 224))
    patch = backbone.patch
    if patch is not None:  # of images that are this large once they are fitted to the patches
        height, width = (side // patch * told_stride(patch) for side in (height, width))
    noise = torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images = normalise(noise, backbone.mean, backbone.std)
    script = script or STRANGER + MAPS[backbone.library]
    given = images if patch is None else fitted_images(images, patch)
    theirs = run_stranger(
        script, program, {"images": given, "bytes": noise}, backbone.library_name, str(len(backbone.channels))
    )
    with torch.no_grad(), evaluating(backbone):
        ours = backbone(images)
    worst = 0.0
    for level, features in ours.items():
        found = theirs.get(level)
        if found is None or found.shape != features.shape:
            raise ExportMismatchError(f"map {level} of the exported backbone is missing or of another shape")
        worst = max(worst, float((found - features).abs().max() / features.abs().max().clamp_min(1e-12)))
    if not worst <= MAP_TOLERANCE:
        raise ExportMismatchError(f"the exported backbone's maps differ by {worst:.2g} of their largest value")
    return {"maps": len(ours), "largest_difference": worst}


def compare_detections(ours: list[dict[str, Tensor]], theirs: list[dict[str, Tensor]]) -> dict[str, float]:
    """Match detections ("boxes" (N, 4) xyxy px, "scores" (N,), "labels" (N,), and "masks" (N, …, H, W) bool where ours
    have them), image by image, in both directions.

    Returns and raises as `check_detector` says.
    """
    count = matched = 0
    box_difference = score_difference = mask_difference = 0.0
    masked = any("masks" in own for own in ours)
    for own, other in zip(ours, theirs, strict=True):
        box = (own["boxes"][:, None] - other["boxes"][None]).abs().amax(-1)
        score = (own["scores"][:, None] - other["scores"][None]).abs()
        same = own["labels"][:, None] == other["labels"][None]
        close = same & (box <= BOX_TOLERANCE) & (score <= SCORE_TOLERANCE)
        count += len(own["boxes"]) + len(other["boxes"])
        if not close.numel():
            continue
        apart = torch.zeros_like(box)
        if masked:
            for row, column in close.nonzero().tolist():
                apart[row, column] = _apart(own["masks"][row].flatten(), other["masks"][column].flatten())
            close &= apart <= MASK_TOLERANCE
        matched += int(close.any(1).sum() + close.any(0).sum())
        nearest = torch.where(close, box, torch.inf).argmin(1)[close.any(1)]
        rows = close.any(1).nonzero()[:, 0]
        if len(rows):
            box_difference = max(box_difference, float(box[rows, nearest].max()))
            score_difference = max(score_difference, float(score[rows, nearest].max()))
            mask_difference = max(mask_difference, float(apart[rows, nearest].max()))
    if not count or matched < COUNTERPARTS * count:
        raise ExportMismatchError(
            f"{matched} of {count} detections, own and exported, have a counterpart "
            f"within {BOX_TOLERANCE} px and {SCORE_TOLERANCE} of score"
            + (f", with a mask of at least {1 - MASK_TOLERANCE} IoU" if masked else "")
        )
    figures = {"detections": count // 2, "box_difference": box_difference, "score_difference": score_difference}
    return {**figures, "mask_difference": mask_difference} if masked else figures


def _apart(one: Tensor, other: Tensor) -> float:
    """1 − IoU of two masks (P,) bool; 0 of two empty ones, 1 of those of different sizes."""
    if one.shape != other.shape:
        return 1.0
    return int((one ^ other).sum()) / max(1, int((one | other).sum()))


def check_images(image_size: int) -> list[Tensor]:
    """Two images (3, H, W) uint8 of coarse and fine noise: larger than `image_size` px and wide, smaller and tall."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for height, width in (
        (image_size * 3 // 4 | 1, image_size * 5 // 4 | 1),
        (image_size // 2 | 1, image_size // 3 | 1),
    ):
        image = torch.zeros(1, 3, height, width)
        for cells, weight in ((3, 0.5), (12, 0.3), (48, 0.2)):
            noise = torch.rand(1, 3, cells, cells, generator=generator)
            image += weight * torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")
        images.append((image[0] * 255).to(torch.uint8))
    return images


def at_zero(detector: Detector) -> Detector:
    """The detector a second time, with the same weights in memory and a score threshold of 0."""
    config = detector.config()
    options = {**config["options"], "score_threshold": 0.0}
    build = DETECTORS[config["detector"]]
    again = build_unfilled(lambda: build(config["num_classes"], build_backbone(config["backbone"]), **options))
    again.net.load_state_dict(detector.net.state_dict(), assign=True)
    return again


def check_weights(file: Path, net: nn.Module) -> None:
    """Raises: ExportMismatchError where a written file does not hold the network's tensors."""
    wrong = differing(file, net.state_dict())
    if wrong:
        raise ExportMismatchError(f"{file.name} differs from what was exported in {len(wrong)} tensors, as {wrong[0]}")


def run_stranger(script: str, program: Path, tensors: dict[str, Tensor], *words: str) -> dict[str, Tensor]:
    """What `script` answers to `tensors`, run with `program` in a process that cannot import selfdet nor download."""
    with tempfile.TemporaryDirectory() as scratch:
        inputs, outputs = Path(scratch) / "inputs.safetensors", Path(scratch) / "outputs.safetensors"
        write_safetensors(inputs, tensors, {})
        arguments = [str(program.resolve()), str(inputs), str(outputs), str(torch.get_num_threads()), *words]
        done = subprocess.run(
            [sys.executable, "-B", "-c", script, *arguments],
            cwd=scratch,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise ExportMismatchError(f"{program.name} does not run without selfdet: {lines[-1]}")
        return read_weights(outputs)[0]
