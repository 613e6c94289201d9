"""What frozen features tell apart: by their nearest neighbours, and by a linear classifier.

Both see the features only, so they are judged in seconds; how well a fine-tuned detector does is another question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import roi_align

from selfdet.data.pixels import normalise
from selfdet.data.probe_samples import ProbeSamples
from selfdet.methods.momentum import BATCH_NORMS
from selfdet.models.backbones import Backbone, evaluating

# What is probed and by what, as in probe.json → in words; the order of tables.
TASKS = {"images": "whole images", "crops": "boxes cut out", "boxes": "boxes in their images"}
CLASSIFIERS = {"linear": "linear", "knn": "nearest neighbours"}
TEMPERATURE = 0.07  # of the neighbours' votes
# Of the linear classifier's squared weights, strongest first; the best on a fifth is taken.
PENALTIES = (1.0, 1e-1, 1e-2, 1e-3)
STEPS = 60  # of a fit, which goes on from the one with a stronger penalty
LEVELS = 3  # coarsest maps that a box is pooled from: those of a one-stage detector's pyramid
BINS = 3  # along each side of a pooled box
SETTLING = 4  # batches that an untrained network's batch norm is set by


@torch.no_grad()
def settle(backbone: Backbone, pictures: Tensor, batch_size: int) -> None:
    """Set the running statistics of batch norm to those of some pictures (P, 3, S, S) uint8.

    For an untrained network, whose own (mean 0, variance 1) are statistics of nothing.
    """
    norms = [module for module in backbone.modules() if isinstance(module, BATCH_NORMS)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches
        norm.train()
    for pictures_of_batch in pictures[: SETTLING * batch_size].split(batch_size):
        if len(pictures_of_batch) > 1:
            _maps(backbone, pictures_of_batch)
    for norm, momentum in zip(norms, kept):
        norm.momentum = momentum
        norm.eval()


@torch.no_grad()
def features(backbone: Backbone, samples: ProbeSamples, batch_size: int) -> Tensor:
    """The features (N, D) float32 of samples, from a backbone in evaluation mode.

    Of whole pictures the mean of the last map; of boxes the means within the box of each of the three coarsest maps,
    each of unit length, side by side.
    """
    found = []
    with evaluating(backbone):
        for start in range(0, len(samples.pictures), batch_size):
            pictures = samples.pictures[start : start + batch_size]
            maps = _maps(backbone, pictures)
            if samples.boxes is None:
                found.append(maps[-1].mean((2, 3)).cpu())
                continue
            inside = (samples.picture >= start) & (samples.picture < start + len(pictures))
            rois = torch.cat([(samples.picture[inside] - start)[:, None].float(), samples.boxes[inside].float()], 1)
            pooled = [_pool(level, rois, pictures.shape[-1]) for level in maps[-LEVELS:]]
            found.append(torch.cat([functional.normalize(each, dim=1) for each in pooled], 1).cpu())
    return torch.cat(found)


def _maps(backbone: Backbone, pictures: Tensor) -> list[Tensor]:
    device = next(backbone.parameters()).device
    with torch.autocast(device.type, enabled=False):
        maps = backbone(normalise(pictures.to(device), backbone.mean, backbone.std)).values()
    return [level.float() for level in maps]


def _pool(level: Tensor, rois: Tensor, size: int) -> Tensor:
    scale = level.shape[-1] / size
    pooled: Tensor = roi_align(level, rois.to(level), BINS, spatial_scale=scale, sampling_ratio=2, aligned=True)
    return pooled.mean((2, 3))


def splits(samples: ProbeSamples, share: float, seeds: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each seed the samples to learn from and those to judge by, (n,) int64: about `share` of the images.

    Whole images are drawn, and separately among those with each rarest class, so that every class with two images is on
    both sides.
    """
    often = torch.bincount(samples.labels, minlength=len(samples.classes))
    rarest: dict[int, int] = {}
    for image, label in zip(samples.image.tolist(), samples.labels.tolist()):
        if image not in rarest or often[label] < often[rarest[image]]:
            rarest[image] = label
    for seed in seeds:
        rng, judged = np.random.default_rng(seed), set()
        for kind in range(len(samples.classes)):
            images = [image for image, label in rarest.items() if label == kind]
            count = min(max(1, round(share * len(images))), len(images) - 1) if len(images) > 1 else 0
            judged |= set(rng.permutation(images)[:count].tolist())
        if not judged:  # a class an image
            judged = set(rng.permutation(list(rarest))[: max(1, round(share * len(rarest)))].tolist())
        held = torch.tensor([image in judged for image in samples.image.tolist()])
        yield (~held).nonzero().flatten(), held.nonzero().flatten()


def scores(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, neighbours: int) -> dict[str, Any]:
    """Accuracies 0…1 of both classifiers: `{"knn", "linear"}`, each with `accuracy` and `balanced_accuracy`.

    `train`, `test`: features (n, D), (m, D); labels (n,), (m,) int64. Balanced: the mean over the classes of the share
    that is told right.
    """
    classes = int(torch.cat([train_labels, test_labels]).max()) + 1
    told = {
        "knn": nearest(train, train_labels, test, neighbours, classes),
        "linear": linear(train, train_labels, test, classes),
    }
    return {name: judge(answer, test_labels) for name, answer in told.items()}


def judge(answer: Tensor, truth: Tensor) -> dict[str, float]:
    """Accuracy and balanced accuracy, 0…1, of answers (m,) to a truth (m,)."""
    right = (answer == truth).double()
    each = [float(right[truth == label].mean()) for label in truth.unique()]
    return {"accuracy": float(right.mean()), "balanced_accuracy": sum(each) / len(each)}


def chance(train_labels: Tensor, test_labels: Tensor) -> dict[str, float]:
    """What is got without looking: always the class most frequent in training."""
    return judge(train_labels.mode().values.expand(len(test_labels)), test_labels)


def nearest(train: Tensor, labels: Tensor, test: Tensor, neighbours: int, classes: int) -> Tensor:
    """The class (m,) of each test feature by its most similar training features, weighted by exp(cosine / 0.07).

    Source: Wu et al., "Unsupervised feature learning via non-parametric instance discrimination" (arXiv 1805.01978),
    section 3.4.
    """
    similarity = functional.normalize(test, dim=1) @ functional.normalize(train, dim=1).T
    values, places = similarity.topk(min(neighbours, len(train)), dim=1)
    votes = torch.zeros(len(test), classes)
    votes.scatter_add_(1, labels[places], (values / TEMPERATURE).exp())
    return votes.argmax(1)


def linear(train: Tensor, labels: Tensor, test: Tensor, classes: int) -> Tensor:
    """The class (m,) of each test feature by multinomial logistic regression on standardised training features.

    The penalty of the squared weights is the one with the best accuracy on every fifth training feature, the stronger
    of equals.
    """
    inside, outside = _standardised(train, test)
    tried = torch.arange(len(labels)) % 5 == 4
    best, chosen, weights = -1.0, 0, None
    for place, penalty in enumerate(PENALTIES if tried.any() else PENALTIES[:1]):
        weights = _fit(inside[~tried], labels[~tried], classes, penalty, weights)
        right = float((_answers(weights, inside[tried]) == labels[tried]).float().mean()) if tried.any() else 0.0
        if right > best:
            best, chosen = right, place
    weights = None
    for penalty in PENALTIES[: chosen + 1]:
        weights = _fit(inside, labels, classes, penalty, weights)
    assert weights is not None
    return _answers(weights, outside)


def _standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Mean 0 and variance 1 in training, with a column of ones; double."""
    mean, deviation = train.double().mean(0), train.double().std(0)
    scaled = [(each.double() - mean) / deviation.clamp(min=1e-9) for each in (train, test)]
    inside, outside = (torch.cat([each, torch.ones(len(each), 1)], 1) for each in scaled)
    return inside, outside


def _fit(inputs: Tensor, labels: Tensor, classes: int, penalty: float, begin: Tensor | None = None) -> Tensor:
    """The weights (D + 1, classes) of least cross entropy plus penalty; the last row, of the ones, is free of it."""
    count, width = inputs.shape
    wanted = functional.one_hot(labels, classes).double()
    strength = torch.full((width, 1), penalty, dtype=torch.float64)
    strength[-1] = 0

    weights = torch.zeros(width, classes, dtype=torch.float64) if begin is None else begin.clone()
    weights.requires_grad_()
    # Not scipy's, whose threads are not ours to bound: on a busy machine they wait for each other, 25 times as long.
    solver = torch.optim.LBFGS([weights], max_iter=STEPS, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        logs = (inputs @ weights).log_softmax(1)
        value = -(wanted * logs).sum() / count + 0.5 * (strength * weights.square()).sum()
        weights.grad = inputs.T @ (logs.exp() - wanted) / count + strength * weights
        return value

    with torch.no_grad():
        solver.step(loss)
    return weights.detach()


def _answers(weights: Tensor, inputs: Tensor) -> Tensor:
    return (inputs @ weights).argmax(1)
