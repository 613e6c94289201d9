"""How large anchors are beside the images that a detector is made for."""

from __future__ import annotations

RATIOS = (0.5, 1.0, 2.0)  # height over width, as torchvision's


def level_sides(image_size: int, strides: list[int]) -> list[int]:
    """A side (px) of each level, even and in proportion to its stride, that suits images of `image_size` px.

    It is √(image_size / 1024) strides, at least half a stride and at most a stride: 4, 8, 16, 32, 64 px up to 400 px,
    the strides themselves from 784 px on. FCOS and RetinaNet say why.
    """
    finest = strides[0]
    side = min(finest, max(finest // 2, 2 * round(finest * (image_size / 1024) ** 0.5 / 2)))
    return [side * stride // finest for stride in strides]


def working_scale(image_size: int) -> float:
    """How much smaller than usual an R-CNN's anchors and the regions of a level are, for images of `image_size` px.

    As in `level_sides`: half as large up to 400 px, as large as in the papers from 784 px on.
    """
    return level_sides(image_size, [8])[0] / 8
