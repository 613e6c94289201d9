"""Memory that weights take on their way in and out, beside their size: files of about a gigabyte.

    python benchmarks/export_memory.py

Each way is a process of its own. Counted is its highest memory less what it had before it began, once its libraries
were loaded; the process without selfdet that loads an export again, with the library's own code, is not.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

MAKE = """
import sys, torch
from selfdet.interchange.starts import save_backbone
from selfdet.models.backbones import build_backbone
with torch.device("meta"):
    backbone = build_backbone(sys.argv[1])
backbone.net.to_empty(device="cpu")
for value in backbone.net.state_dict().values():
    value.zero_() if value.dtype == torch.int64 else value.normal_(std=0.02).abs_()
save_backbone(sys.argv[2], backbone, {})
"""
MAKE_DETR = """
import sys, torch
from pathlib import Path
from selfdet.detectors.zoo import DETECTORS
from selfdet.interchange.export_transformers import write_transformers
from selfdet.interchange.starts import detector_note
from selfdet.models.backbones import build_backbone
detector = DETECTORS["detr"](1, build_backbone(sys.argv[1]), image_size=64)
Path(sys.argv[2]).mkdir()
write_transformers(Path(sys.argv[2]), detector, detector_note(detector, ["a"], [1], 64))
"""
MEASURE = """
import os, resource, sys
import transformers.models.detr.modeling_detr, transformers.models.timm_backbone.modeling_timm_backbone
import selfdet.verbs.export, selfdet.verbs.import_weights, selfdet.verbs.push
from selfdet.models.backbones import build_backbone
build_backbone("resnet18")
verb, name, file, out = sys.argv[1:]
with open("/proc/self/statm") as now:
    before = int(now.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
if verb == "import-detr":
    selfdet.verbs.import_weights.import_weights(file=os.path.dirname(file), out=out)
elif verb == "import":
    selfdet.verbs.import_weights.import_weights(file=file, out=out, format="timm", backbone=name)
elif verb == "push":
    selfdet.verbs.push.push(init=file, to=out)
else:
    selfdet.verbs.export.export(init=file, to="timm", out=out)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print((peak - before) / os.path.getsize(file))
"""


def main() -> None:
    """Print a Markdown table, a way a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="convnext_large")
    name = parser.parse_args().backbone
    with tempfile.TemporaryDirectory() as folder:
        file, detr = Path(folder) / "weights.safetensors", Path(folder) / "detr"
        subprocess.run([sys.executable, "-c", MAKE, name, str(file)], check=True)
        subprocess.run([sys.executable, "-c", MAKE_DETR, name, str(detr)], check=True)
        print("| way | file | memory beside its size |\n|---|---|---|")
        ways = {"import": file, "export": file, "push": file, "import-detr": detr / "model.safetensors"}
        for verb, given in ways.items():
            words = [sys.executable, "-c", MEASURE, verb, name, str(given), str(Path(folder) / verb)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            size = f"{given.stat().st_size / 1e9:.2f} GB"
            print(f"| {verb} | {name}, {size} | {float(done.stdout.strip().splitlines()[-1]):.2f} |", flush=True)


if __name__ == "__main__":
    main()
