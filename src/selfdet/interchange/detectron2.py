"""detectron2's `.pkl` files: a pickle read by the only unpickler in selfdet, which can make arrays and nothing else.

A pickle is a program. This one's words for finding a function or class know the few of `_standing_in`, each of which is
answered by a stand-in of ours; numpy's own are never called. What they make is counted: no more than a few times the
file. Python's own implementation is used and not the one in C, whose memory a file of ten bytes can exhaust.
"""

from __future__ import annotations

import math
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
from torch import Tensor

from selfdet.errors import UserError, shown

DTYPES = {
    **{"f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "u1": torch.uint8, "b1": torch.bool},
    **{"i1": torch.int8, "i2": torch.int16, "i4": torch.int32, "i8": torch.int64},
}
MOST = 4  # times the file's bytes that its arrays and strings may take
# What a file of arrays has no use for: objects that stand elsewhere, numbers instead of names, classes called in other
# ways than by a function, and bytes whose memory is taken before they are read.
UNUSED = (
    *(pickle.PERSID, pickle.BINPERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.INST, pickle.OBJ),
    *(pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.BYTEARRAY8),
)


class NotAllowedError(Exception):
    """What a pickle asked for is not on the list."""


class _Dtype:
    """The type of an array's numbers, by its code of two letters."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "<"

    def set_state(self, state: Any) -> None:
        self.order = state[1]


class _Array:
    """An array, empty until its state comes."""

    def __init__(self) -> None:
        self.tensor: Tensor | None = None

    def set_state(self, state: Any, encode: Callable[[str], bytes]) -> None:
        _, shape, dtype, by_columns, data = state
        if not isinstance(dtype, _Dtype) or dtype.order == ">":
            raise NotAllowedError("an array of something else than numbers")
        data = encode(data) if isinstance(data, str) else data  # Python 2 wrote bytes as text
        kind = DTYPES[dtype.code]
        if not isinstance(data, bytes) or not all(type(side) is int and side >= 0 for side in shape):
            raise NotAllowedError("an array without bytes")
        if math.prod(shape) * kind.itemsize != len(data):
            raise NotAllowedError(f"an array of {math.prod(shape)} numbers with {len(data)} bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nobody may write into them; nobody does
            flat = torch.frombuffer(data, dtype=kind) if data else torch.empty(0, dtype=kind)
        turned = flat.reshape(shape[::-1]).permute(tuple(range(len(shape)))[::-1])
        self.tensor = turned if by_columns else flat.reshape(shape)


class _Bounded:
    """A file of which no more is asked for than there is."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size = file, size

    def read(self, count: int) -> bytes:
        if count > self.size:
            raise EOFError("it is cut off")
        return self.file.read(count)

    def readline(self) -> bytes:
        return self.file.readline(2**16)


class ArraysOnly(pickle._Unpickler):
    """The unpickler of files with arrays in dicts and lists."""

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = {
        code: word for code, word in pickle._Unpickler.dispatch.items() if bytes([code]) not in UNUSED
    }

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__(_Bounded(file, size), encoding="latin1")
        self.left = MOST * size + 2**20
        self.standing_in = self._standing_in()

    def _standing_in(self) -> dict[tuple[str, str], Any]:
        """The names that are answered, and with what."""
        numpy = {"_reconstruct": lambda kind, shape, code: _Array()}
        rooms = ("numpy.core.multiarray", "numpy._core.multiarray")
        return {
            **{(room, name): made for room in rooms for name, made in numpy.items()},
            ("numpy", "ndarray"): None,
            ("numpy", "dtype"): self._dtype,
            ("_codecs", "encode"): lambda text, code: self._encode(text),
            ("__builtin__", "bytes"): lambda: b"",  # how Python 3 writes none for Python 2
            ("collections", "OrderedDict"): OrderedDict,
        }

    def find_class(self, module: str, name: str) -> Any:
        """What stands in for a name on the list. Raises: NotAllowedError for any other."""
        if (module, name) not in self.standing_in:
            raise NotAllowedError(f"it asks for {shown(f'{module}.{name}')}")
        return self.standing_in[module, name]

    def _dtype(self, code: Any, *how: Any) -> _Dtype:
        if not isinstance(code, str) or code not in DTYPES:
            raise NotAllowedError(f"an array of {shown(code)}")
        return _Dtype(code)

    def _encode(self, text: str) -> bytes:
        self.left -= len(text)
        if self.left < 0:
            raise NotAllowedError("it would take many times its own size")
        return text.encode("latin1")

    def load_build(self) -> None:
        """Give an array or its type its state; nothing else has any."""
        state = self.stack.pop()
        made = self.stack[-1]
        if isinstance(made, _Array):
            made.set_state(state, self._encode)
        elif isinstance(made, _Dtype):
            made.set_state(state)
        else:
            raise NotAllowedError(f"state for {shown(type(made).__name__)}")

    dispatch[pickle.BUILD[0]] = load_build


def read_pickle(path: Path) -> dict[str, Any]:
    """What a pickle of arrays in dicts holds, the arrays as tensors; nothing in it is executed.

    Raises: UserError for a file that is cut off, or asks for anything but arrays, ordered dicts, bytes and text.
    """
    try:
        with path.open("rb") as file:
            content = ArraysOnly(file, path.stat().st_size).load()
        if not isinstance(content, Mapping):
            raise NotAllowedError(f"it holds a {type(content).__name__}, expected arrays by name")
        return _plain(content)
    except MemoryError:  # says nothing of the file
        raise
    except NotAllowedError as error:
        raise UserError(
            f"{path} holds more than arrays by name and was not executed: {error}",
            "If you trust its source, load it yourself and write its arrays with safetensors.numpy.save_file",
        ) from None
    except Exception as error:  # of bytes that are no pickle Python raises anything
        raise UserError(f"{path} is no pickle of arrays, or damaged ({shown(str(error))})", "Fetch it again") from None


def _plain(content: Mapping[Any, Any], deep: bool = True) -> dict[str, Any]:
    """The arrays of a dict, and of the dicts in it, as tensors; other values as they are."""
    made: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, _Array):
            made[str(name)] = value.tensor
        else:
            made[str(name)] = _plain(value, deep=False) if deep and isinstance(value, Mapping) else value
    return made
