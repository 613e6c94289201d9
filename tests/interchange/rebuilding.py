"""An exported detector, rebuilt by the program that goes along with it, beside the one it was exported from."""

import torch
from torchvision import tv_tensors

from selfdet.data.labelled import resize_sample
from selfdet.data.sample import plain_sample
from selfdet.interchange.companions import rebuild
from selfdet.interchange.export_detector import write_detector


def noise(height, width, seed=0):
    """An image (3, H, W) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator).to(torch.uint8)


def note_of(detector):
    """What the detector's weights file says of it."""
    classes = [f"class {label}" for label in range(detector.num_classes)]
    ids = [10 * (label + 1) for label in range(detector.num_classes)]
    return {**detector.config(), "classes": classes, "category_ids": ids, "image_size": detector.options["image_size"]}


def seen(detector):
    """The detector after its batch norms have met images: their statistics are no longer the initial ones."""
    detector.train()
    net = detector.net
    with torch.no_grad():
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            net.backbone(2 * torch.randn(2, 3, 64, 64, generator=generator))
            if hasattr(net, "roi_heads"):
                cells = net.roi_heads.box_roi_pool.output_size
                net.roi_heads.box_head(torch.rand(4, net.backbone.out_channels, *cells, generator=generator))
    return detector


def rebuilt(detector, folder):
    """torchvision's network of the exported detector."""
    write_detector(folder, detector, note_of(detector))
    return rebuild.build(folder)


def own(detector, image, size):
    """What selfdet's `predict` gives, images being resized to `size` px."""
    return detector.predict([resize_sample(plain_sample(tv_tensors.Image(image)), size)])[0]


def assert_same(net, detector, image, size):
    """The network finds what the detector does, of which there is something."""
    with torch.no_grad():
        found = net([image.float() / 255])[0]
    expected = own(detector, image, size)
    assert found.keys() == expected.keys()
    assert len(expected["boxes"]) > 10
    torch.testing.assert_close(found["boxes"], expected["boxes"], atol=1e-3, rtol=0)
    torch.testing.assert_close(found["scores"], expected["scores"], atol=1e-6, rtol=0)
    assert torch.equal(found["labels"], expected["labels"])
    if "masks" in expected:
        # Where the whole image is a few pixels, many a box has the middle of none.
        assert expected["masks"].flatten(1).any(1).float().mean() > 0.25
        assert torch.equal(found["masks"][:, 0], expected["masks"])
