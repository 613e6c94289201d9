"""What `selfdet finetune` does differently for detection and for segmentation: one `Task` each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from lightning_fabric import Fabric

from selfdet.data.loader import TrainingDataset
from selfdet.detectors.network import Network
from selfdet.interchange.starts import WIDTHS, Start
from selfdet.methods.base import Method
from selfdet.training.defaults import Default
from selfdet.training.optimizers import OptimizerName
from selfdet.training.transfer import TransferReport

Labelled = TypeVar("Labelled")  # labels to learn from
Held = TypeVar("Held")  # labels to evaluate on
Net = TypeVar("Net", bound=Network)
Data = TypeVar("Data", bound=TrainingDataset[Any])


@dataclass(frozen=True)
class Shape:
    """The flags that shape a network and its views, None where not given; `scale_jitter`: shares of the image size."""

    detector: str | None
    backbone: str | None
    neck: str | None
    fpn_channels: int | None
    head_convs: int | None
    box_head: str | None
    queries: int | None
    scale_jitter: tuple[float, float] | None
    crop_size: int | None
    keep_box_outputs: bool
    masks: bool = False

    @property
    def widths(self) -> dict[str, Any]:
        """Those that the network is built with, beside its kind and its backbone."""
        named = {name: getattr(self, name) for name in WIDTHS}
        return {**named, "masks": self.masks or None}  # a start that has masks keeps them


class Task(ABC, Generic[Labelled, Held, Net, Data]):
    """Labels, network and objective of a fine-tuning; made by the verb from what it was asked.

    `product`: what the run leaves, and the prefix of its weights in the method. `schedule`: of the learning rate.
    `jitter`: the usual scales of training images, as shares of the image size. `collate`: makes a batch of a list of
    the dataset's items.

    Raises: UserError for a flag that is another task's.
    """

    product: ClassVar[Literal["detector", "segmenter"]]
    schedule: ClassVar[Literal["step", "poly"]]
    jitter: ClassVar[tuple[float, float]]
    collate: Callable[[Any], Any]
    scale_jitter: tuple[float, float]

    def __init__(self, shape: Shape) -> None:
        super().__init__()

    @abstractmethod
    def load(self, data: str, images: str | None) -> Labelled:
        """The labels to learn from."""

    @abstractmethod
    def hold_out(self, data: str, images: str | None, labels: Labelled) -> Held:
        """Labels to evaluate on, by the classes of those that are learned from."""

    @abstractmethod
    def check(self, chosen: Labelled) -> None:
        """Look at what would be learned from. Raises: UserError where nothing could be."""

    @abstractmethod
    def usual_steps(self, images: int, batch: int) -> Default:
        """Optimiser steps where nothing was asked."""

    @abstractmethod
    def usual_optimizer(self, start: Start) -> OptimizerName:
        """The optimiser where nothing was asked."""

    @abstractmethod
    def usual_rate(self, batch: int, start: Start, optimizer: OptimizerName) -> Default:
        """Learning rate where nothing was asked."""

    @abstractmethod
    def usual_size(self, labels: Labelled) -> Default:
        """Long side (px) of images where nothing was asked."""

    @abstractmethod
    def build(self, start: Start, labels: Labelled, pixels: int, batch_norm: str) -> tuple[Net, TransferReport | None]:
        """The network filled from the start, and what was reused."""

    @abstractmethod
    def dataset(self, chosen: Labelled, network: Net, pixels: int, seed: int) -> Data:
        """What is learned from, augmented."""

    @abstractmethod
    def note(self, network: Net, labels: Labelled, pixels: int) -> dict[str, Any]:
        """What the weights file says of itself."""

    @abstractmethod
    def settings(self, note: Mapping[str, Any]) -> dict[str, Any]:
        """What config.yaml keeps of the task."""

    @abstractmethod
    def remarks(self, labels: Labelled, chosen: Labelled, held_out: Held | None, dataset: Data) -> Iterator[str]:
        """What of the labels is worth a line of the log."""

    @abstractmethod
    def objects(self, chosen: Labelled) -> str:
        """How much is labelled in the chosen images, in words."""

    @abstractmethod
    def method(self, network: Net) -> Method:
        """The objective over the network."""

    @abstractmethod
    def trial(self, network: Net, side: int) -> Any:
        """A batch of two images of `side` px, to see what a pass takes."""

    @abstractmethod
    def area(self, chosen: Labelled, pixels: int) -> float:
        """Pixels of each image in the largest batch, padding included."""

    @abstractmethod
    def score(self, held_out: Held, network: Net, pixels: int, fabric: Fabric) -> tuple[Mapping[str, Any], str]:
        """Scores on held-out labels, and the line that says them."""

    @abstractmethod
    def save(self, path: Path, network: Net, note: Mapping[str, Any]) -> None:
        """Write the product."""
