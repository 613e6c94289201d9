"""A network taken down as a graph, and how what the graph finds is held against the network's own.

Sizes stay open: any number of images, each side any multiple of the graph's `step`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from selfdet.data.sample import plain_sample
from selfdet.detectors.base import Detector
from selfdet.detectors.one_stage import OneStage
from selfdet.detectors.queries import QueryDetector
from selfdet.detectors.two_stage import TwoStage
from selfdet.errors import UserError
from selfdet.interchange.export_check import (
    MAP_TOLERANCE,
    ExportMismatchError,
    at_zero,
    check_images,
    compare_detections,
)
from selfdet.interchange.fixed_padding import fixed_padding
from selfdet.interchange.graphs import BackboneGraph, OneStageGraph, SegmenterGraph
from selfdet.interchange.graphs_queries import QueryGraph
from selfdet.interchange.graphs_rcnn import RCNNGraph
from selfdet.interchange.outgoing import Outgoing
from selfdet.interchange.suppression import Suppression
from selfdet.models.backbones import evaluating

MOST_STEPS = 256  # sides of images, in steps

# What a graph gives by name for its inputs by name.
Answer = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def graph_of(given: Outgoing, suppress: Suppression) -> nn.Module:
    """The network as a function of bytes, in evaluation mode; its `outputs` are the names of what comes out.

    With the option `nms` "out" a detector's last suppression is left to others. Raises: UserError.
    """
    network, finds = given.network, given.options.get("nms") != "out"
    graph: nn.Module
    if given.kind == "backbone":
        graph = BackboneGraph(network)
    elif given.kind == "segmenter":
        graph = SegmenterGraph(network)
    elif isinstance(network, OneStage):
        if not finds and network.key == "fcos" and network.options["mmdet"] is not None:
            raise UserError("--nms out: this FCOS looks at places by other scores than it gives", "Leave --nms out")
        graph = OneStageGraph(network, suppress if finds else None)
    elif isinstance(network, TwoStage):
        if network.has_masks and not finds:
            raise UserError("--nms out: masks are found for the boxes that are left", "Leave --nms out")
        graph = RCNNGraph(network, suppress, finds)
    elif isinstance(network, QueryDetector):
        if not finds:
            raise UserError("--nms out: DETRs suppress nothing", "Leave --nms out")
        graph = QueryGraph(network)
    else:
        raise UserError(f"{given.source} is a {given.note['detector']}, which has no graph yet", "Use it with selfdet")
    if given.kind != "detector" and not finds:
        raise UserError(f"--nms is for detectors, and this is a {given.kind}", "Leave it out")
    return graph.eval()


def input_names(graph: nn.Module) -> list[str]:
    """What a graph takes: images, of a detector their sizes, and where it suppresses a threshold."""
    if isinstance(graph, (BackboneGraph, SegmenterGraph)):
        return ["images"]
    return ["images", "sizes", *(["threshold"] if "labels" in graph.outputs else [])]  # type: ignore[operator]


def taken_down(graph: nn.Module, name: str) -> torch.export.ExportedProgram:
    """The graph as `torch.export` sees it, its sizes open.

    Raises: UserError when the network `name` does what no graph can hold, such as going by the sizes of its images.
    """
    step: int = graph.step  # type: ignore[assignment]
    least = shortest_side(graph) // step
    # A map of one row or column would stay so: the trial has more of every map.
    more = max(2, getattr(graph, "coarsest", step) // step)
    height, width = (least + more) * step, (least + more + 1) * step
    images, rows = torch.export.Dim("images", min=1), torch.export.Dim("rows", min=least, max=MOST_STEPS)
    columns = torch.export.Dim("columns", min=least, max=MOST_STEPS)
    given: dict[str, tuple[Tensor, dict[int, Any]]] = {
        "images": (torch.zeros(2, 3, height, width, dtype=torch.uint8), {0: images, 2: step * rows, 3: step * columns}),
        "sizes": (torch.tensor([[height - 3, width], [height, width - 5]]), {0: images}),
        "threshold": (torch.tensor([0.01]), {}),
    }
    names = input_names(graph)
    try:
        with warnings.catch_warnings(), fixed_padding(graph):
            warnings.simplefilter("ignore")
            return torch.export.export(
                graph,
                tuple(given[each][0] for each in names),
                dynamic_shapes=tuple(given[each][1] for each in names),
                strict=False,
            )
    except Exception as error:  # what goes by its sizes raises anything
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{name} cannot be taken down as a graph for images of any size ({lines[0][:160]})",
            "Export it to its own library, or take a convolutional backbone",
        ) from error


def shortest_side(graph: nn.Module) -> int:
    """The least that a graph takes of either side of its images, in px: a step, or what gives enough cells."""
    known: Any = graph
    return int(getattr(known, "least", known.step))


def inputs_of(graph: nn.Module, images: Sequence[Tensor], threshold: float = 0.0) -> dict[str, Tensor]:
    """What a graph takes of images (3, h, w) uint8."""
    step: int = graph.step  # type: ignore[assignment]
    sides = (max(shortest_side(graph), *(image.shape[side] for image in images)) for side in (-2, -1))
    height, width = (-(-side // step) * step for side in sides)
    tensor = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
    for row, image in zip(tensor, images):
        row[:, : image.shape[-2], : image.shape[-1]] = image
    sizes = torch.tensor([image.shape[-2:] for image in images])
    given = {"images": tensor, "sizes": sizes, "threshold": torch.tensor([threshold])}
    return {name: given[name] for name in input_names(graph)}


def trial_images(size: int) -> list[Tensor]:
    """Eight images (3, h, w) uint8 of noise, wide, square and tall, up to `size` px; the first three of one size."""
    sides = [(size, size * 3 // 4)] * 3 + [(size * 3 // 4, size), (size, size), (size // 2 | 1, size)]
    sides += [(size // 3 | 1, size // 2 | 1), (size, size // 3 | 1)]
    large = check_images(2 * size)[0]
    return [
        large[:, row * size // 32 : row * size // 32 + height, :width].contiguous()
        for row, (height, width) in enumerate(sides)
    ]


def check_detections(graph: nn.Module, detector: Detector, image_size: int, answer: Answer) -> dict[str, float]:
    """Compare what a graph finds in eight images of several sizes with what the detector finds: each alone, at its own
    threshold, two of them also at 0, and three at once.

    Returns and raises as `compare_detections`.
    """
    images, own = trial_images(image_size), detector.config()["options"]["score_threshold"]
    runs = [([image], own) for image in images] + [([image], 0.0) for image in images[3:5]] + [(images[:3], own)]
    ours, theirs = [], []
    with torch.no_grad(), evaluating(detector):
        zero = at_zero(detector).eval()
        for some, threshold in runs:
            judge = detector if threshold == own else zero
            for image in some:
                (found,) = judge.detections(judge.prepare([plain_sample(tv_tensors.Image(image))]))
                ours.append(_plain(found))
            found = answer(inputs_of(graph, some, threshold))
            if "labels" not in found:
                found = best_pairs(found, detector, threshold)
            theirs += [
                _plain({key: value[found["rows"] == row] for key, value in found.items() if key != "rows"})
                for row in range(len(some))
            ]
    return compare_detections(ours, theirs)


def _plain(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**found, "masks": found["masks"] > 0.5} if "masks" in found else found


def best_pairs(found: dict[str, Tensor], detector: Detector, threshold: float) -> dict[str, Tensor]:
    """What suppression leaves of a graph's own "boxes" and "scores", as whoever runs it would do it."""
    from torchvision.ops import batched_nms

    boxes, scores, config = found["boxes"], found["scores"], detector.config()
    if "rows" not in found:  # of every place: one box whatever the class
        rows = torch.arange(len(boxes))[:, None].expand(boxes.shape[:2]).flatten()
        boxes, scores = boxes.flatten(0, 1)[:, None].expand(-1, scores.shape[2], -1), scores.flatten(0, 1)
    else:
        rows = found["rows"]
    sides = (boxes[..., 2:] - boxes[..., :2]).amin(-1)
    places, labels = torch.where((scores > threshold) & (sides >= (0.01 if "rows" in found else 0.0)))
    boxes, scores, rows = boxes[places, labels], scores[places, labels], rows[places]
    left = []
    for row in rows.unique():
        own = torch.where(rows == row)[0]
        kept = batched_nms(boxes[own], scores[own], labels[own], config["nms_threshold"])
        left.append(own[kept[: config["options"]["detections"]]])
    kept = torch.cat(left) if left else places[:0]
    return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept], "rows": rows[kept]}


def check_maps(graph: nn.Module, image_size: int, answer: Answer) -> dict[str, float]:
    """Compare a graph's maps with its network's own, on an image alone, two of another size and three at once.

    Returns the number of "maps" and the "largest_difference", as a share of a map's largest value.
    Raises: ExportMismatchError when a map differs by more than 0.0001 of its largest value.
    """
    images, worst, count = trial_images(image_size), 0.0, 0
    for some in ([images[3]], [images[4]], [images[6]], images[:3]):
        given = inputs_of(graph, some)
        found = answer(given)
        with torch.no_grad():
            ours = dict(zip(graph.outputs, graph(*given.values())))  # type: ignore[arg-type]
        for name, features in ours.items():
            if found[name].shape != features.shape:
                raise ExportMismatchError(f"{name} of the exported network is of another shape")
            apart = float((found[name] - features).abs().max() / features.abs().max().clamp_min(1e-12))
            worst, count = max(worst, apart), count + 1
    if not worst <= MAP_TOLERANCE:
        raise ExportMismatchError(f"the exported network's maps differ by {worst:.2g} of their largest value")
    return {"maps": count, "largest_difference": worst}
