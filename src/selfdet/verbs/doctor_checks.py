"""What `doctor` looks at on a machine: each check says ok, warning or fault, and what to do."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from selfdet.data.memory import GIB, free_memory
from selfdet.data.workers import script_hidden, start_method, start_worker
from selfdet.errors import one_line
from selfdet.training.runtime import cpu_has_bf16

LITTLE_MEMORY, LITTLE_DISK, NO_DISK, LITTLE_SHARED = 4 * GIB, 5 * GIB, GIB // 10, GIB // 4
FEW_HANDLES = 1024
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What a bug report needs to know of, beside what selfdet itself asks for.
BESIDE = ("nvidia-cudnn-cu12", "triton", "opencv-python", "opencv-python-headless")


@dataclass(frozen=True)
class Check:
    """One line of the report; `advice` where something is to be done."""

    name: str
    status: Literal["ok", "warning", "fault"]
    words: str
    advice: str = ""

    def to_dict(self) -> dict[str, str]:
        """As `--json` has it."""
        return asdict(self)

    @property
    def line(self) -> str:
        """`warning  shared memory: 64 MiB: …`."""
        advice = f" → {self.advice}" if self.advice else ""
        return f"{self.status:8} {one_line(f'{self.name}: {self.words}{advice}')}"


def machine_checks(folder: Path) -> Iterator[Check]:
    """Everything but the stages; `folder` is the one that runs would be written to."""
    yield Check("system", "ok", f"{platform.system()} {platform.release()} {platform.machine()}, Python {_python()}")
    yield from package_checks()
    yield operator_check()
    yield from device_checks()
    yield threads_check()
    yield from filter(
        None, [memory_check(), disk_check(folder), writing_check(folder), shared_check(), handles_check()]
    )
    yield worker_check()


def _python() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def package_checks() -> Iterator[Check]:
    """The packages that selfdet asks for, with their versions; too old or absent is a fault."""
    from packaging.requirements import Requirement

    yield Check("selfdet", "ok", _version("selfdet") or "not installed as a package")
    for asked in (Requirement(text) for text in metadata.requires("selfdet") or []):
        if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
            continue
        found = _version(asked.name)
        if found is None or not asked.specifier.contains(found, prereleases=True):
            advice = f"pip install '{asked.name}{asked.specifier}'"
            yield Check(asked.name, "fault", f"{found or 'absent'}, needs {asked.specifier}", advice)
        else:
            yield Check(asked.name, "ok", found)
    for name in BESIDE:
        if found := _version(name):
            yield Check(name, "ok", found)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def operator_check() -> Check:
    """torchvision's own operators, which are there only if it was built for this torch."""
    try:
        from torchvision.ops import nms

        kept = nms(torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8]]), torch.tensor([0.9, 0.8]), 0.5)
    except (ImportError, RuntimeError) as error:
        advice = "install torch and torchvision of one release, from one index"
        return Check("torchvision's operators", "fault", _first(error), advice)
    return Check("torchvision's operators", "ok" if kept.tolist() == [0] else "fault", "non-maximum suppression works")


def device_checks() -> Iterator[Check]:
    """Every device with its memory, and each precision really tried on it."""
    yield precision_check("cpu", platform.processor() or platform.machine())
    for place in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(place)
        words = f"{about.name}, {about.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}"
        yield precision_check(f"cuda:{place}", words)
    if torch.version.cuda and not torch.cuda.is_available():
        words = f"none found, though torch is built for CUDA {torch.version.cuda}; nvidia-smi shows the driver"
        yield Check("GPU", "ok", words)
    if torch.backends.mps.is_available():
        yield precision_check("mps", "Apple GPU")


def precision_check(device: str, words: str) -> Check:
    """A small convolution and product in each precision, held against float32."""
    tried = {name: try_precision(device, kind) for name, kind in PRECISIONS.items()}
    told = ", ".join(f"{name} {why or 'works'}" for name, why in tried.items())
    if device == "cpu" and not tried["bf16"] and not cpu_has_bf16():
        told = told.replace("bf16 works", "bf16 works, but emulated and slower")
    if tried["fp32"]:
        return Check(device, "fault", f"{words}: {told}", "reinstall torch for this machine")
    broken = device != "cpu" and tried["bf16"] and tried["fp16"]
    return Check(device, "warning" if broken else "ok", f"{words}: {told}", "use --precision fp32" if broken else "")


def try_precision(device: str, kind: torch.dtype) -> str:
    """What is wrong with a precision on a device; empty where its results are right."""
    try:
        torch.manual_seed(0)
        images, weights = torch.rand(1, 8, 16, 16), torch.rand(8, 8, 3, 3) / 72
        right = _compute(images, weights)
        found = _compute(images.to(device, kind), weights.to(device, kind)).float().cpu()
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        return f"fails ({_first(error)[:80]})"
    return "" if torch.allclose(found, right, rtol=0.05, atol=0.05) else "gives wrong numbers"


def _compute(images: Tensor, weights: Tensor) -> Tensor:
    maps = nn.functional.conv2d(images, weights, padding=1).flatten(2)[0]
    return maps @ maps.T / maps.shape[1]


def threads_check() -> Check:
    """Threads against the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    words = f"{threads} of torch on {cores} cores"
    if threads > cores:
        return Check("threads", "warning", words, f"set OMP_NUM_THREADS={cores} or --threads {cores}")
    return Check("threads", "ok", words)


def memory_check() -> Check | None:
    """Main memory that is free, within the limit of a container."""
    free = free_memory()
    if free is None:
        return None
    words = f"{free / GIB:.1f} GiB free"
    if free < LITTLE_MEMORY:
        return Check("memory", "warning", words, "use a smaller --batch-size and fewer --workers")
    return Check("memory", "ok", words)


def disk_check(folder: Path) -> Check:
    """Space where runs are written: a run of a ResNet-50 with checkpoints is about 1 GiB."""
    free = shutil.disk_usage(folder).free
    words = f"{free / GIB:.1f} GiB free in the current folder"
    if free < LITTLE_DISK:
        status: Literal["fault", "warning"] = "fault" if free < NO_DISK else "warning"
        return Check("disk", status, words, "write runs elsewhere with --out")
    return Check("disk", "ok", words)


def writing_check(folder: Path) -> Check:
    """Whether runs can be written into the folder."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        words = f"the current folder can't be written ({error.strerror})"
        return Check("writing", "warning", words, "write runs elsewhere with --out")
    return Check("writing", "ok", "the current folder can be written")


def shared_check(place: str = "/dev/shm") -> Check | None:
    """Shared memory, through which loader processes hand over batches; containers often have 64 MiB."""
    if not os.path.isdir(place):
        return None
    total = shutil.disk_usage(place).total
    words = f"{total / 2**20:,.0f} MiB"
    if total < LITTLE_SHARED:
        return Check("shared memory", "warning", words, "start the container with --shm-size=8g, or use --workers 0")
    return Check("shared memory", "ok", words)


def handles_check() -> Check | None:
    """Files that one process may have open."""
    try:
        import resource
    except ImportError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= limit < FEW_HANDLES:
        return Check("open files", "warning", f"at most {limit}", "raise the limit: ulimit -n 4096")
    return Check("open files", "ok", f"at most {limit}")


def worker_check() -> Check:
    """Whether a loader process starts and hands a batch over."""
    try:
        with script_hidden():
            loader: DataLoader[int] = DataLoader(
                range(2),  # type: ignore[arg-type]
                num_workers=1,
                timeout=60,
                multiprocessing_context=start_method(),
                worker_init_fn=start_worker,
            )
            found = [int(batch) for batch in loader]
    except (RuntimeError, OSError, AssertionError) as error:
        return Check("loader process", "fault", _first(error), "use --workers 0, and report this")
    return Check("loader process", "ok" if found == [0, 1] else "fault", "starts and answers")


def _first(error: BaseException) -> str:
    return one_line((str(error).strip().splitlines() or [type(error).__name__])[0], 200)
