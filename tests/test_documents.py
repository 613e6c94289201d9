"""Every command of README, tutorial and how-tos runs as it is written, on generated scenes and at a tiny size."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from selfdet.cli import VERBS, main
from selfdet.data.synthetic import make_scenes

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    "README.md",
    "docs/tutorial.md",
    "docs/how-to-check.md",
    "docs/how-to-pretrain.md",
    "docs/how-to-proposals.md",
    "docs/how-to-compare.md",
    "docs/how-to-see.md",
)
# What makes a command small; it replaces the same flags in the text.
SMALL = {
    "pretrain": {
        "--steps": "2",
        "--image-size": "64",
        "--batch-size": "4",
        "--backbone": "resnet18",
        "--fpn-channels": "64",
        "--head-convs": "1",
    },
    "finetune": {
        "--steps": "2",
        "--image-size": "64",
        "--fraction": "0.5",
        "--fpn-channels": "64",
        "--head-convs": "1",
    },
    "compare": {
        "--steps": "2",
        "--image-size": "64",
        "--fractions": "0.5",
        "--seeds": "1",
        "--lr": "0.01",
        "--curve-points": "0",
        "--fpn-channels": "64",
        "--head-convs": "1",
    },
}


def commands(document: str) -> list[list[str]]:
    """The words of every selfdet command in the document's bash blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]


def small(words: list[str]) -> list[str]:
    """The command at a tiny size, without the program's name."""
    program, verb, *rest = words
    assert program == "selfdet"
    flags = SMALL.get(verb, {})
    kept, skip = [], False
    for word, after in zip(rest, [*rest[1:], ""]):
        if skip:
            skip = False
        elif word in flags or (word.endswith("epochs") and "--steps" in flags):
            skip = not after.startswith("--")
        else:
            kept.append(word)
    return [verb, *kept, *(word for pair in flags.items() for word in pair)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_run_as_written(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 6), ("val", 3)):
        make_scenes(tmp_path, count=count, size=64, split=split)
    (tmp_path / "labels").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"{split}.json").rename(tmp_path / "labels" / f"{split}.json")
    (tmp_path / "images").rename(tmp_path / "photos")
    shutil.copy(tmp_path / "labels" / "train.json", tmp_path / "own.json")  # boxes of the reader's own
    found = commands(document)
    assert found
    for words in found:
        assert main(small(words)) == 0, " ".join(words)


@pytest.mark.slow
def test_the_cluster_example_runs_as_written(tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="pip install selfdet[cluster]")
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/how-to-proposals.md").read_text(), flags=re.DOTALL)
    make_scenes(tmp_path, count=6, size=64)
    (tmp_path / "images").rename(tmp_path / "photos")
    (tmp_path / "cluster.py").write_text(example)
    subprocess.run([sys.executable, "cluster.py"], cwd=tmp_path, check=True)
    assert main(["proposals", "--images", str(tmp_path / "photos"), "--out", str(tmp_path / "alone.json")]) == 0
    assert (tmp_path / "cluster.json").read_bytes() == (tmp_path / "alone.json").read_bytes()


def test_the_reference_names_every_verb() -> None:
    text = (ROOT / "docs/reference.md").read_text()
    assert all(f"`{verb}`" in text for verb in VERBS)


def test_links_between_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"
