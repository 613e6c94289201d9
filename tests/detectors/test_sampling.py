"""Which places take part: objects first, and nothing but the generator decides where there is no room for all."""

import torch

from selfdet.detectors.sampling import ObjectsFirst, choose


def test_places_of_objects_are_chosen_first_and_background_fills_up():
    objects, background = torch.arange(10) < 3, torch.arange(10) > 5
    draw = torch.Generator()
    assert set(choose(objects, background, 10, draw).tolist()) == {0, 1, 2, 6, 7, 8, 9}
    some = choose(objects, background, 5, draw).tolist()
    assert some[:3] == [0, 1, 2]
    assert len(set(some[3:])) == 2
    assert set(some[3:]) < {6, 7, 8, 9}
    assert set(choose(objects, background, 2, draw).tolist()) < {0, 1, 2}
    assert len(choose(objects & False, background & False, 2, draw)) == 0


def test_drawn_places_follow_from_the_generator_and_are_even():
    everywhere = torch.ones(50, dtype=torch.bool)
    once, again = (choose(everywhere, ~everywhere, 20, torch.Generator().manual_seed(1)) for _ in range(2))
    assert once.equal(again)
    draw = torch.Generator().manual_seed(0)
    counts = torch.stack([choose(everywhere, ~everywhere, 20, draw) for _ in range(500)]).flatten().bincount()
    assert (counts - 200).abs().max() < 60


def test_objects_are_drawn_first_and_background_fills_up_or_is_counted_apart():
    labels = [torch.tensor([1, 0, 0, 2, -1, 0, 3.0]), torch.zeros(3)]
    objects, background = ObjectsFirst(torch.Generator(), 5)(labels)
    assert objects[0].tolist() == [True, False, False, True, False, False, True]
    assert int(background[0].sum()) == 2
    assert not background[0][labels[0] != 0].any()
    assert (int(objects[1].sum()), int(background[1].sum())) == (0, 3)
    objects, background = ObjectsFirst(torch.Generator(), 2, 1)(labels)
    assert (int(objects[0].sum()), int(background[0].sum()), int(background[1].sum())) == (2, 1, 1)
    assert not ObjectsFirst(torch.Generator(), 2, 0)(labels)[1][0].any()
