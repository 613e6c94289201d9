"""Claims about health: match accuracy knows the truth and leaves the network alone; words say what figures mean."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.methods.tiny import tiny_backbone, train, view_batch
from torch import Tensor, nn

from selfdet.data.geometry import true_matches
from selfdet.data.views import TwoViews, ViewBatch, ViewDataset, collate_views
from selfdet.methods.densecl import DenseCL
from selfdet.models.backbones import Backbone
from selfdet.training.health import Matches, MatchProbe, batch_statistics, match_accuracy, words


class Colours(nn.Module):
    """The mean colour of each 8 × 8 cell, spread over cosines of it so that different colours point apart."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        cells = nn.functional.avg_pool2d(x, 8)
        waves = [torch.cos(cells * f) for f in range(1, 9)] + [torch.sin(cells * f) for f in range(1, 9)]
        return {"0": torch.cat(waves, 1) * self.weight}


def shifted_views(cells: int) -> ViewBatch:
    """Views of noise painted in 8 px cells; the key view starts `cells` cells further right."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 256, (3, 3, 4, 4 + cells), dtype=torch.uint8, generator=generator)
    wide = colours.repeat_interleave(8, 2).repeat_interleave(8, 3)
    affine = torch.eye(2, 3).repeat(3, 1, 1)
    key_affine = affine.clone()
    key_affine[:, 0, 2] = 8.0 * cells
    return ViewBatch(wide[..., :32], wide[..., -32:], affine, key_affine, ["", "", ""])


def colours_backbone() -> Backbone:
    return Backbone("colours", "torchvision", Colours(), lambda net, x: net(x), [48], [8])


def test_features_that_tell_the_cells_apart_match_exactly_and_to_the_pixel() -> None:
    figures = match_accuracy(colours_backbone(), shifted_views(1))
    assert figures == {"match_accuracy": 1.0, "match_error_px": 0.0, "match_chance": 1 / 16}


def test_wrong_matches_are_measured_in_pixels_of_the_view() -> None:
    batch = shifted_views(1)
    # Said to start one cell lower, every match is now 8 px off.
    batch.key_affine[:, 1, 2] = 8.0
    figures = match_accuracy(colours_backbone(), batch)
    assert figures["match_accuracy"] == 0
    assert figures["match_error_px"] == pytest.approx(8.0)


def test_pairs_without_overlap_give_no_figures() -> None:
    batch = shifted_views(1)
    batch.key_affine[:, 0, 2] = 1000.0
    assert match_accuracy(colours_backbone(), batch) == {}


def test_measuring_changes_neither_weights_statistics_nor_modes() -> None:
    backbone = tiny_backbone()
    backbone.train()
    backbone.net.first.eval()
    before = copy.deepcopy(backbone.state_dict())
    modes = [part.training for part in backbone.modules()]
    first = match_accuracy(backbone, view_batch(4))
    assert first == match_accuracy(backbone, view_batch(4))
    assert [part.training for part in backbone.modules()] == modes
    assert all(value.equal(before[name]) for name, value in backbone.state_dict().items())


def test_batch_statistics_are_those_of_the_batch_and_the_others_come_back_after_an_error() -> None:
    norm = nn.BatchNorm2d(2).eval()
    norm.running_mean.fill_(3.0)
    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0)) * 5 + 1
    with batch_statistics(norm):
        torch.testing.assert_close(norm(x).mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    with pytest.raises(RuntimeError), batch_statistics(norm):
        raise RuntimeError
    assert norm.running_mean.equal(torch.full((2,), 3.0))
    assert not norm.training


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = []
    for index in range(5):
        pixels = torch.randint(0, 256, (6, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        path = tmp_path / f"{index}.png"
        Image.fromarray(pixels.numpy()).resize((80, 60)).save(path)
        paths.append(path)
    return paths


def test_a_probe_measures_on_the_same_pairs_every_time_and_passes_over_unreadable_images(photos: list[Path]) -> None:
    photos[2].write_bytes(b"not an image")
    probe, again = (MatchProbe(photos, 32, seed=0, device="cpu") for _ in range(2))
    assert probe.batch is not None
    assert len(probe.batch) == 4
    backbone = tiny_backbone()
    assert probe(backbone) == again(backbone)
    assert 0 <= probe(backbone)["match_accuracy"] <= 1
    assert len(MatchProbe(photos, 32, seed=0, device="cpu", pairs=2).batch or []) == 2


def test_a_probe_of_nothing_readable_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    assert MatchProbe([tmp_path / "a.jpg"], 32, seed=0, device="cpu")(tiny_backbone()) == {}


def test_the_true_matches_are_those_of_the_views(photos: list[Path]) -> None:
    dataset = ViewDataset(photos, TwoViews(32, 0))
    batch = collate_views([dataset.load(index, 0) for index in range(5)])

    class Oracle(Colours):
        """Looks up where each cell lies in the source image: unlike any network, it cannot be wrong."""

        calls = 0

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            self.calls += 1
            match, valid, _ = true_matches(batch.query_affine, batch.key_affine, 32, 4)
            cells = (
                torch.eye(17)[torch.where(valid, match, 16)]
                if self.calls == 1
                else torch.eye(17)[:16].expand(5, -1, -1)
            )
            return {"0": cells.transpose(1, 2).reshape(5, 17, 4, 4) * self.weight}

    oracle = Backbone("oracle", "torchvision", Oracle(), lambda net, x: net(x), [17], [8])
    figures = match_accuracy(oracle, batch)
    assert figures["match_accuracy"] == 1
    assert figures["match_error_px"] < 8


GOOD: dict[str, Any] = {
    "step": 100,
    "global": 2.0,
    "queue_filled": 1.0,
    "pos_similarity": 0.8,
    "neg_similarity": 0.1,
    "feature_std": 0.9,
    "effective_rank": 20.0,
    "rank_limit": 32.0,
    "match_accuracy": 0.5,
    "match_error_px": 14.0,
    "match_chance": 1 / 49,
}
START: dict[str, Any] = {"step": 0, "match_accuracy": 0.3, "match_error_px": 30.0, "match_chance": 1 / 49}


def said(**changes: Any) -> str:
    return " ".join(words([START, {**GOOD, **changes}], queue_length=4096))


def test_words_give_the_figures_of_a_healthy_run_without_advice() -> None:
    text = said()
    for expected in ("2.00", "log(4096 + 1) = 8.32", "0.80", "20.0 of 32", "50.0%", "before training in 30.0%", "2.0%"):
        assert expected in text
    assert "better" in text
    for advice in ("train for longer", "learning rate"):
        assert advice not in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"global": 8.3}, "That is chance"),
        ({"dense": 8.3}, "dense loss is 8.30"),
        ({"queue_filled": 0.25}, "Only 25% of the queue"),
        ({"feature_std": 0.01}, "collapsed"),
        ({"effective_rank": 1.2}, "collapsed"),
        ({"effective_rank": 1.2, "pos_similarity": 0.62, "neg_similarity": 0.50}, "momentum nearer to 1"),
        ({"effective_rank": 1.2, "pos_similarity": 0.92, "neg_similarity": 0.91}, "key batch norm"),
        ({"match_accuracy": 0.2}, "has not improved the matches"),
        ({"rank_limit": 1.0}, "cannot be told"),
    ],
)
def test_words_name_what_is_wrong_and_what_to_do(changes: dict[str, Any], expected: str) -> None:
    assert expected in said(**changes)


def test_a_change_within_the_noise_of_the_pairs_is_not_called_better() -> None:
    assert "better" in said(match_accuracy=0.35, match_noise=0.02)
    text = said(match_accuracy=0.35, match_noise=0.03)
    assert "better" not in text
    assert "beyond the noise of ±6.0%" in text


def test_the_noise_of_a_change_is_its_standard_error_over_the_pairs() -> None:
    cells = torch.tensor([9, 12, 0, 12])
    before = Matches(torch.tensor([1, 2, 0, 3]), cells, torch.ones(33), 1 / 16)
    after = Matches(torch.tensor([5, 2, 0, 9]), cells, torch.ones(33), 1 / 16)
    change = 10 / 33
    residuals = [4 - 9 * change, 0 - 12 * change, 6 - 12 * change]
    expected = (sum(value**2 for value in residuals) * 3 / 2) ** 0.5 / 33
    assert after.noise_since(before) == pytest.approx(expected)
    assert after.noise_since(after) == 0.0
    single = Matches(torch.tensor([5, 0]), torch.tensor([9, 0]), torch.ones(9), 1 / 16)
    assert single.noise_since(single) == 1.0


def test_a_probe_compares_with_the_untrained_network(photos: list[Path]) -> None:
    untrained, other = tiny_backbone(0), tiny_backbone(1)
    probe = MatchProbe(photos, 32, seed=0, device="cpu", untrained=untrained)
    assert probe(untrained)["match_noise"] == 0.0
    assert 0 < probe(other)["match_noise"] < 1
    assert "match_noise" not in MatchProbe(photos, 32, seed=0, device="cpu")(other)


def test_words_of_a_run_without_figures_are_none() -> None:
    assert words([], queue_length=8) == []
    assert words([{"step": 1, "lr": 0.1}], queue_length=8) == []


def test_words_understand_the_figures_a_method_gives() -> None:
    method = DenseCL(tiny_backbone(), queue_length=16, dim=8)
    loss = train(method, [8])[0]
    sentences = words([{"step": 1, "global": float(loss), "dense": float(loss), **method.health()}], queue_length=16)
    assert sum("loss is" in sentence for sentence in sentences) == 2
    assert any("A cell's similarity" in sentence for sentence in sentences)
