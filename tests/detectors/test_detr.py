"""DETR alone: its decoder's layers, dropout, and the weight of no object."""

from __future__ import annotations

import pytest
import torch
from tests.detectors.detr_scenes import BOXES, small_detr
from tests.detectors.scenes import sample

from selfdet.detectors._transformers import Maps, shrunk
from selfdet.detectors._transformers_detr import decoder_states
from selfdet.detectors.queries import pixel_mask
from selfdet.errors import UserError
from selfdet.models.backbones import build_backbone


@torch.no_grad()
def test_the_last_layers_states_are_the_librarys_last_hidden_state() -> None:
    detector = small_detr().eval()
    batch = detector.prepare([sample(96, 128), sample(128, 70)])
    theirs = detector.net(pixel_values=batch.tensor, pixel_mask=pixel_mask(batch).long())
    features = detector.features(batch)["0"]
    states = decoder_states(detector.net, features, shrunk(pixel_mask(batch), features.shape[-2:]))
    torch.testing.assert_close(states[-1], theirs.last_hidden_state, atol=1e-5, rtol=1e-5)
    assert not states[0].allclose(states[1], atol=0.1)


def test_masks_shrink_with_the_maps() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :5, :4] = True
    assert shrunk(mask, (4, 4))[0].tolist() == [[True, True, False, False]] * 3 + [[False] * 4]
    backbone = build_backbone("resnet18")
    maps = Maps(backbone, 3)(torch.zeros(1, 3, 64, 64), torch.ones(1, 64, 64, dtype=torch.long))
    assert [(tuple(each.shape), tuple(own.shape)) for each, own in maps] == [
        ((1, 128, 8, 8), (1, 8, 8)),
        ((1, 256, 4, 4), (1, 4, 4)),
        ((1, 512, 2, 2), (1, 2, 2)),
    ]


def test_without_losses_nothing_is_dropped_out() -> None:
    detector, samples = small_detr().train(), [sample(128, 128, BOXES)]
    batch = detector.prepare(samples)
    projector, maps = detector.projector(8), detector.features(batch)

    def last(losses: bool) -> torch.Tensor:
        return detector.regions(maps, batch, projector, torch.Generator(), losses=losses)[-1].embeddings

    assert last(False).equal(last(False))
    assert detector.net.model.decoder.training
    assert not last(True).equal(last(True))


def test_queries_without_an_object_weigh_what_is_asked() -> None:
    samples = [sample(128, 128, BOXES, [0, 1])]
    light, heavy = small_detr(), small_detr(no_object=1.0)
    heavy.net.load_state_dict(light.net.state_dict())
    assert (light.config()["options"]["no_object"], heavy.config()["options"]["no_object"]) == (0.1, 1.0)
    batch = light.prepare(samples)
    found = light.queries(light.features(batch), pixel_mask(batch))
    logits = found.logits[0].detach()
    for detector, weight in ((light, 0.1), (heavy, 1.0)):
        criterion = detector.criterion(logits).loss
        assert criterion.empty_weight.tolist() == pytest.approx([1.0, 1.0, 1.0, weight])
    for value in (0.0, 1.5):
        with pytest.raises(UserError, match=f"no_object {value}"):
            small_detr(no_object=value)
