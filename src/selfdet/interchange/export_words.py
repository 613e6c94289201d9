"""What a check of an export found, in words."""

from __future__ import annotations

from collections.abc import Mapping


def differences(figures: Mapping[str, float]) -> str:
    """Of detections, as `compare_detections` counts them."""
    apart = figures.get("mask_difference")
    masks = "" if apart is None else f", masks by {apart:.2g} of their pixels"
    return (
        f"{figures['detections']} detections compared: boxes differ by at most "
        f"{figures['box_difference']:.2g} px, scores by {figures['score_difference']:.2g}{masks}"
    )


def map_differences(figures: Mapping[str, float], what: str = "maps") -> str:
    """Of maps, of which `figures` has the number and the largest difference."""
    count = figures[what.replace(" ", "_")]
    return f"{count} {what} compared: they differ by at most {figures['largest_difference']:.2g} of their largest value"
