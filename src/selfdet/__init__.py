"""Pre-train whole object detectors from unlabelled images, and measure with few labels whether it helped.

Every verb of the command line is a function here, with the same argument names (`_` for `-`):
`selfdet.pretrain(images="photos", out="runs/pre")`. All names are imported on first use, so that `import selfdet`
costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfdet.data.sample import Sample
    from selfdet.errors import UserError
    from selfdet.models.backbones import build_backbone
    from selfdet.verbs.check import check
    from selfdet.verbs.compare import compare
    from selfdet.verbs.correspond import correspond
    from selfdet.verbs.demo import demo
    from selfdet.verbs.doctor import doctor
    from selfdet.verbs.evaluate import evaluate
    from selfdet.verbs.export import export
    from selfdet.verbs.finetune import finetune
    from selfdet.verbs.import_weights import import_weights
    from selfdet.verbs.predict import predict
    from selfdet.verbs.pretrain import pretrain
    from selfdet.verbs.probe import probe
    from selfdet.verbs.proposals import proposals
    from selfdet.verbs.pull import pull
    from selfdet.verbs.push import push
    from selfdet.verbs.report import report
    from selfdet.verbs.shard import shard

    __version__: str

__all__ = [
    "Sample",
    "UserError",
    "__version__",
    "build_backbone",
    "check",
    "compare",
    "correspond",
    "demo",
    "doctor",
    "evaluate",
    "export",
    "finetune",
    "import_weights",
    "predict",
    "pretrain",
    "probe",
    "proposals",
    "pull",
    "push",
    "report",
    "shard",
]

_ROOMS = {"Sample": "data.sample", "UserError": "errors", "build_backbone": "models.backbones"}


def __getattr__(name: str) -> Any:
    """Import a public name on first use and keep it."""
    if name not in __all__:
        raise AttributeError(f"module 'selfdet' has no attribute '{name}'")
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("selfdet")
    else:
        value = getattr(import_module(f"selfdet.{_ROOMS.get(name, f'verbs.{name}')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
