"""Every command of README, tutorial and how-tos runs as it is written, on generated scenes and at a tiny size."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from selfdet.cli import VERBS, main
from selfdet.data.synthetic import make_scenes
from selfdet.models.backbones import build_backbone

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    "README.md",
    "docs/tutorial.md",
    "docs/how-to-check.md",
    "docs/how-to-pretrain.md",
    "docs/how-to-proposals.md",
    "docs/how-to-weights.md",
    "docs/how-to-few-labels.md",
    "docs/how-to-slow-data.md",
    "docs/how-to-shards.md",
    "docs/how-to-compare.md",
    "docs/how-to-see.md",
    "docs/how-to-segment.md",
    "docs/how-to-recipes.md",
    "docs/how-to-pedestrians.md",
    "docs/how-to-settings.md",
    "docs/how-to-clusters.md",
)
# Those whose Python is run as well, before their commands.
WITH_PYTHON = ("docs/how-to-weights.md", "docs/how-to-slow-data.md")
# Whose commands are tested one by one elsewhere (tests/test_cli_recipes.py, tests/verbs/test_devices.py), or in other
# documents.
SLOW = ("docs/how-to-recipes.md", "docs/how-to-clusters.md", "docs/how-to-pedestrians.md")
# What makes a command small; it replaces the same flags in the text.
WIDTHS = {"--image-size": "64", "--fpn-channels": "64", "--head-convs": "1", "--workers": "0", "--precision": "fp32"}
SMALL = {
    "import-weights": {"--backbone": "test_resnet"},
    "proposals": {"--workers": "1"},
    "probe": {"--min-side": "4"},
    "pretrain": {"--steps": "2", "--batch-size": "4", "--backbone": "test_resnet", **WIDTHS},
    "finetune": {"--steps": "2", "--fraction": "0.5", **WIDTHS},
    "segmentation": {"--steps": "2", "--image-size": "64", "--crop-size": "48"},
    "compare": {
        "--steps": "2",
        "--fractions": "0.5",
        "--seeds": "1",
        "--lr": "0.01",
        "--curve-points": "0",
        **WIDTHS,
    },
}
# The network that stands for another one in a test.
STANDS_FOR = {"resnet18": "test_resnet"}


def commands(document: str) -> list[list[str]]:
    """The words of every selfdet command in the document's bash blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]


def python(document: str) -> list[str]:
    """The document's Python blocks."""
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)


def small(words: list[str]) -> list[str]:
    """The command at a tiny size, without the program's name."""
    program, verb, *rest = words
    assert program == "selfdet"
    flags = SMALL.get("segmentation" if verb == "finetune" and "segmentation" in rest else verb, {})
    kept, skip = [], False
    for word, after in zip(rest, [*rest[1:], ""]):
        if skip:
            skip = False
        elif word in flags or (word.endswith("epochs") and "--steps" in flags):
            skip = not after.startswith("--")
        else:
            kept.append(STANDS_FOR.get(word, word))
    if verb == "finetune" and "--config" in rest:  # a recipe names the backbone that the start would have
        kept += ["--backbone", SMALL["pretrain"]["--backbone"]]
    return [verb, *kept, *(word for pair in flags.items() for word in pair)]


class Runner:
    """Runs commands in one folder after the other; what an equal command trained before is copied, not trained again.

    Equal: the same words but for `--out`, where what an earlier command made stands for that command.
    """

    def __init__(self) -> None:
        self.done: dict[tuple[object, ...], Path] = {}
        self.made: dict[str, tuple[object, ...]] = {}

    def __call__(self, words: list[str]) -> int:
        out = words[words.index("--out") + 1] if "--out" in words else ""
        key = tuple(self.origin(word) for word in words if word != out)
        found = self.done.get(key)
        if not out or found is None or "--resume" in words or words[0] not in ("pretrain", "finetune"):
            code = main(words)
        else:
            shutil.copytree(found, out)
            code = 0
        if out:
            self.done.setdefault(key, Path(out).absolute())
            self.made[out] = key
        return code

    def origin(self, word: str) -> object:
        """A word of a command, or the command that made what it names."""
        for out, key in self.made.items():
            if word == out or word.startswith(f"{out}/"):
                return (key, word.removeprefix(out))
        return word


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the documents speak of: `photos/`, two files in `labels/`, somebody's boxes and somebody's weights."""
    folder = tmp_path_factory.mktemp("material")
    for split, count in (("train", 6), ("val", 3)):
        make_scenes(folder, count=count, size=64, split=split)
    (folder / "labels").mkdir()
    for split in ("train", "val"):
        (folder / f"{split}.json").rename(folder / "labels" / f"{split}.json")
    (folder / "images").rename(folder / "photos")
    shutil.copy(folder / "labels" / "train.json", folder / "own.json")
    encoder = build_backbone(SMALL["pretrain"]["--backbone"]).net.state_dict()
    torch.save({"state_dict": {f"module.encoder_q.{name}": encoder[name] for name in encoder}}, folder / "moco.pth")
    return folder


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner()


@pytest.mark.parametrize(
    "document", [pytest.param(each, marks=pytest.mark.slow) if each in SLOW else each for each in DOCUMENTS]
)
def test_commands_run_as_written(
    document: str,
    material: Path,
    runner: Runner,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path_factory.mktemp("page")  # kept, as later pages copy what was trained here
    monkeypatch.chdir(folder)
    shutil.copytree(material, folder, dirs_exist_ok=True)
    runner.made.clear()
    for block in python(document) if document in WITH_PYTHON else []:
        exec(compile(block, document, "exec"), {})
    found = commands(document)
    assert found
    for words in found:
        assert runner(small(words)) == 0, " ".join(words)


@pytest.mark.slow
def test_the_cluster_example_runs_as_written(tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="pip install selfdet[cluster]")
    (example,) = python("docs/how-to-proposals.md")
    make_scenes(tmp_path, count=6, size=64)
    (tmp_path / "images").rename(tmp_path / "photos")
    (tmp_path / "cluster.py").write_text(example)
    subprocess.run([sys.executable, "cluster.py"], cwd=tmp_path, check=True)
    assert main(["proposals", "--images", str(tmp_path / "photos"), "--out", str(tmp_path / "alone.json")]) == 0
    assert (tmp_path / "cluster.json").read_bytes() == (tmp_path / "alone.json").read_bytes()


def test_the_reference_names_every_verb() -> None:
    text = (ROOT / "docs/reference.md").read_text()
    assert all(f"`{verb}`" in text for verb in VERBS)


def module(path: Path) -> ModuleType:
    """A script of docs/, imported."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_reference_says_what_the_docstrings_say() -> None:
    for file, text in module(ROOT / "docs/make_reference.py").pages().items():
        assert file.read_text("utf-8") == text, f"{file.name} is not what the docstrings say: run `make reference`"


def test_the_tables_of_settings_are_what_the_code_chooses() -> None:
    script = module(ROOT / "docs/make_settings.py")
    text = script.PAGE.read_text("utf-8")
    assert "| `laptop` |" in text
    assert script.page(text) == text, "run `make reference`"


def test_links_between_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"
