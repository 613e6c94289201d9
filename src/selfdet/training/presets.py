"""Settings for a kind of machine: below whatever is asked for, above what follows from the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from selfdet.training.defaults import Default
from selfdet.training.log import plural

PresetName = Literal["laptop", "one-gpu", "eight-gpu"]


class Setting(NamedTuple):
    """A setting of a preset and why."""

    value: int | str
    why: str


# What a setting is of (run: all of it; backbone, detector: a stage of pretrain; finetune) → its name → the setting.
# `at_most` bounds an image size that follows from the data, `epochs` a length, but not below LEAST steps.
PRESETS: dict[PresetName, dict[str, dict[str, Setting]]] = {
    "laptop": {
        "run": {"backbone": Setting("resnet18", "less than half the computation of resnet50")},
        "backbone": {
            "batch_size": Setting(64, "as on any CPU: a batch of 256 needs four times the memory"),
            "image_size": Setting(128, "a third of the pixels of 224"),
            "epochs": Setting(100, "not the published 800"),
        },
        "detector": {
            "batch_size": Setting(4, "half the memory of 8"),
            "at_most": Setting(400, "a quarter of the pixels of 800"),
        },
        "finetune": {
            "batch_size": Setting(4, "half the memory of 8"),
            "at_most": Setting(400, "a quarter of the pixels of 800"),
        },
    },
    "one-gpu": {
        "run": {"devices": Setting("1", "one process, wherever there are more GPUs")},
        "backbone": {
            "batch_size": Setting(256, "as published"),
            "epochs": Setting(200, "a quarter of the published 800, which took eight GPUs"),
        },
        "detector": {"batch_size": Setting(16, "as published")},
        "finetune": {"batch_size": Setting(16, "as published")},
    },
    "eight-gpu": {
        "run": {"devices": Setting("8", "as the methods' authors had")},
        "backbone": {"batch_size": Setting(256, "as published, 32 a GPU")},
        "detector": {"batch_size": Setting(16, "as published, two a GPU")},
        "finetune": {"batch_size": Setting(16, "as published, two a GPU")},
    },
}
LEAST = 2000  # steps that no preset goes below: few images take many epochs


@dataclass(frozen=True)
class Preset:
    """What a preset, None for none, makes of the usual settings of one part."""

    name: PresetName | None
    part: str
    settings: Mapping[str, Setting] = field(init=False)

    def __post_init__(self) -> None:
        settings = {} if self.name is None else PRESETS[self.name].get(self.part, {})
        object.__setattr__(self, "settings", settings)

    def number(self, setting: str, usual: Default) -> Default:
        """The preset's number, else the usual one."""
        if setting not in self.settings:
            return usual
        return Default(float(self.settings[setting].value), self._why(setting))

    def word(self, setting: str, asked: str | None, usual: str, said: list[str]) -> str:
        """What was asked, else the preset's word, which `said` gets a line about, else the usual one."""
        if asked is not None or setting not in self.settings:
            return usual if asked is None else asked
        value = str(self.settings[setting].value)
        said.append(f"{setting}: {value} ({self._why(setting)})")
        return value

    def size(self, usual: Default) -> Default:
        """An image size that follows from the data, within the preset's bound."""
        if "at_most" not in self.settings or usual.value <= float(self.settings["at_most"].value):
            return usual
        return self.number("at_most", usual)

    def steps(self, usual: Callable[[int, int], Default]) -> Callable[[int, int], Default]:
        """A usual length, `usual(images, batch)`, made shorter where the preset says so."""

        def chosen(images: int, batch: int) -> Default:
            found = usual(images, batch)
            if "epochs" not in self.settings:
                return found
            epochs, per_epoch = int(self.settings["epochs"].value), max(1, images // batch)
            steps = max(epochs * per_epoch, LEAST)
            if steps >= found.value:
                return found
            words = f"{plural(epochs, 'epoch')} of {plural(per_epoch, 'step')}"
            return Default(steps, f"{self._why('epochs')}; {words if steps > LEAST else f'at least {LEAST:,} steps'}")

        return chosen

    def _why(self, setting: str) -> str:
        return f"preset {self.name}: {self.settings[setting].why}"
