"""What detectors and segmenters have in common: a library's network in parts, which alone drive what is done to it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from selfdet.models.backbones import Backbone

# The connections of a composite backbone, by its own names: nobody has trained them, so they count to the neck.
CONNECTIONS = r"connections\."
Own = TypeVar("Own", bound="Network")


@dataclass(frozen=True)
class Part:
    """A part of a network: regular expressions matching the start of its names in `.net.state_dict()`.

    `reinit` marks the last layers, which depend on the classes and start afresh when weights are handed over.
    """

    patterns: list[str]
    reinit: bool = False

    def holds(self, name: str) -> bool:
        """Whether a name of `.net.state_dict()` belongs to this part."""
        return any(re.match(pattern, name) for pattern in self.patterns)


def body_patterns(body: str) -> tuple[str, str]:
    """Patterns of a backbone's names behind the pattern `body`: of what its library made, which is the backbone, and of
    a composite one's connections, which count to the neck."""
    return rf"{body}(?!{CONNECTIONS})", rf"{body}{CONNECTIONS}"


class Network(nn.Module, ABC):
    """A network in `.net` whose weights have a library's names, on a backbone.

    Nothing here branches on `.training`; batch norm does, except where `frozen_norms` names it: those stay in
    evaluation mode whatever `train()` is told.
    """

    net: nn.Module
    backbone: Backbone
    num_classes: int

    def __init__(self, net: nn.Module, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.net = net
        # Not registered as a child: its weights are the net's own and must not appear under a second name.
        object.__setattr__(self, "backbone", backbone)
        self.num_classes = num_classes
        self.frozen_norms: set[str] = set()

    @abstractmethod
    def parts(self, keep_box_outputs: bool = False) -> dict[str, Part]:
        """The parts by name, from the images to the last layers; together they cover `.net.state_dict()` once.

        With `keep_box_outputs` layers that give boxes, which don't depend on the classes, count to the head.
        """

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain values that rebuild this network and say how its images are prepared."""

    def train(self: Own, mode: bool = True) -> Own:
        """Training or evaluation mode of everything but the frozen batch norm."""
        super().train(mode)
        for name in self.frozen_norms:
            self.net.get_submodule(name).eval()
        return self
