"""The detectors by key: `DETECTORS[key](num_classes, backbone, **options) -> Detector`."""

from __future__ import annotations

from collections.abc import Callable

from selfdet.detectors.base import Detector
from selfdet.detectors.one_stage import fcos

DETECTORS: dict[str, Callable[..., Detector]] = {"fcos": fcos}
