"""Heads at chosen places give what convolutions over whole maps give there."""

import pytest
import torch
from torch.nn import functional

from selfdet.models.place_heads import AnchorHead, CellHead, RegionHead

SIZES = [(6, 5), (3, 3), (1, 2)]


def maps(images=2, channels=4):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(images, channels, *size, generator=generator).requires_grad_() for size in SIZES]


def biased(head):
    for name, parameter in head.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter)
    return head


def cell_head_by_convolution(head, levels):
    """(B · cells, D), image by image."""
    channels = levels[0].shape[1]
    kernel = head.first.weight.view(-1, 3, 3, channels).permute(0, 3, 1, 2)
    rows = []
    for level in levels:
        hidden = functional.relu(functional.conv2d(level, kernel, head.first.bias, padding=1))
        rows.append(functional.conv2d(hidden, head.last.weight[:, :, None, None], head.last.bias).flatten(2))
    return torch.cat(rows, 2).transpose(1, 2).flatten(0, 1)


def anchor_head_by_convolution(head, levels):
    """(B · cells · A, D), image by image."""
    rows = []
    for level in levels:
        hidden = functional.relu(functional.conv2d(level, head.first.weight[:, :, None, None], head.first.bias))
        out = functional.conv2d(hidden, head.last.weight[:, :, None, None], head.last.bias)
        rows.append(out.unflatten(1, (head.anchors, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3))
    return torch.cat(rows, 1).flatten(0, 1)


HEADS = [
    (lambda: CellHead(4, 3), cell_head_by_convolution),
    (lambda: AnchorHead(4, 5, 3), anchor_head_by_convolution),
]


@pytest.mark.parametrize(("make", "convolve"), HEADS, ids=["cells", "anchors"])
def test_embeddings_and_gradients_are_those_of_the_whole_maps_at_these_places(make, convolve):
    torch.manual_seed(0)
    head, levels = biased(make()), maps()
    everything = convolve(head, levels)
    places = torch.randperm(len(everything), generator=torch.Generator().manual_seed(1))[: len(everything) // 2]
    found, weights = head(levels, places), torch.randn(len(places), 3)
    torch.testing.assert_close(found, everything[places])
    inputs = [*levels, *head.parameters()]
    expected = torch.autograd.grad((everything[places] * weights).sum(), inputs)
    for ours, theirs in zip(torch.autograd.grad((found * weights).sum(), inputs), expected):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("make", [make for make, _ in HEADS], ids=["cells", "anchors"])
def test_no_places_give_no_embeddings_but_a_gradient_of_zero(make):
    head, levels = make(), maps()
    found = head(levels, torch.zeros(0, dtype=torch.int64))
    assert found.shape == (0, 3)
    found.sum().backward()
    assert all(not value.grad.any() for value in [*levels, *head.parameters()])


@pytest.mark.parametrize("make", [make for make, _ in HEADS], ids=["cells", "anchors"])
def test_directions_do_not_depend_on_the_scale_of_the_maps_at_the_start(make):
    head, levels = make(), maps()
    places = torch.arange(20)
    small = head([level / 1000 for level in levels], places)
    torch.testing.assert_close(functional.normalize(small), functional.normalize(head(levels, places)))


def test_a_regions_embedding_is_that_of_its_features_alone_and_of_their_direction():
    torch.manual_seed(0)
    head, features = RegionHead(6, 3), torch.randn(5, 6)
    found = head(features)
    torch.testing.assert_close(head(features[[3]]), found[[3]])
    torch.testing.assert_close(functional.normalize(head(features / 1000)), functional.normalize(found))
    assert head(features[:0]).shape == (0, 3)
