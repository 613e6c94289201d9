"""What settings say of a backbone and its tensors don't: taken at their word, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfdet.errors import UserError
from selfdet.interchange.training_settings import check_settings, in_one_line

FILE = Path("epoch_12.pth")
RGB = "mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True"
BGR = "mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395], bgr_to_rgb=False"
CAFFE = "mean=[103.530, 116.280, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False"
UNITS = "img_norm_cfg = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])"  # OpenSelfSup's
NARROW, WIDE = ["backbone.layer1.0.conv2.weight"], ["backbone.layer1.0.conv3.weight"]

# As mmengine writes settings: by the alphabet, a line each, with a comma behind the last.
EXPLODED = """data_preprocessor=dict(
    bgr_to_rgb=True,
    mean=[
        123.675,
        116.28,
        103.53,
    ],
    std=[
        58.395,
        57.12,
        57.375,
    ])
"""


@pytest.mark.parametrize("text", ["", RGB, UNITS, EXPLODED, '"mean": [123.675, 116.28, 103.53], "to_rgb": true'])
def test_red_first_is_what_holds_where_nothing_else_is_said(text: str) -> None:
    for pixels in (None, "rgb"):
        check_settings(FILE, in_one_line(text), WIDE, pixels)


@pytest.mark.parametrize(("text", "kind"), [(BGR, "bgr"), (CAFFE, "caffe"), ("style='caffe'", "caffe")])
def test_other_pixels_have_to_be_named_as_they_are(text: str, kind: str) -> None:
    check_settings(FILE, text, NARROW, kind)
    for other in {None, "rgb", "bgr", "caffe"} - {kind}:
        with pytest.raises(UserError, match="by its settings its network takes pixels blue first") as error:
            check_settings(FILE, text, NARROW, other)
        assert error.value.hint == f"{'Add' if other is None else 'Use'} --pixels {kind}"


def test_pixels_that_nothing_can_name_are_refused() -> None:
    for text in ("mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True", RGB.replace("True", "False")):
        for pixels in (None, "rgb", "bgr"):
            with pytest.raises(UserError, match="which no --pixels is"):
                check_settings(FILE, text, NARROW, pixels)
    with pytest.raises(UserError, match="several normalisations"):
        check_settings(FILE, f"{RGB}, {CAFFE}", NARROW, None)
    check_settings(FILE, f"{RGB}, {CAFFE}", NARROW, "caffe")


@pytest.mark.parametrize("pixels", [None, "rgb", "bgr", "caffe"])
def test_bottlenecks_with_strides_elsewhere_are_refused_whatever_their_pixels(pixels: str | None) -> None:
    with pytest.raises(UserError, match="strides are in the 1×1 convolutions"):
        check_settings(FILE, "style='caffe', " + CAFFE, WIDE, pixels)


def test_dilated_stages_are_refused() -> None:
    check_settings(FILE, "dilations=(1, 1, 1, 1)", NARROW, None)
    with pytest.raises(UserError, match="dilated"):
        check_settings(FILE, "dilations=(1, 1, 1, 2)", NARROW, None)
