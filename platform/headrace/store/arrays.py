"""Named numpy arrays as bytes (safetensors): no pickle, and equal arrays give equal bytes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from headrace.errors import StoreError

_TEXT = "::utf8"  # an array of str travels as its bytes and their offsets
_ENDS = _TEXT + "/ends"


def dump_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The arrays as safetensors; one-dimensional arrays of ``str`` are kept as UTF-8."""
    flat: dict[str, NDArray[Any]] = {}
    for name in sorted(arrays):
        array = arrays[name]
        if array.dtype.kind in "OU":
            encoded = [str(value).encode() for value in array]
            flat[name + _TEXT] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
            flat[name + _ENDS] = np.cumsum([len(value) for value in encoded], dtype=np.int64)
        else:
            flat[name] = np.require(array, requirements="C")
    return bytes(save(flat))


def load_arrays(content: bytes) -> dict[str, NDArray[Any]]:
    """What ``dump_arrays`` was given, writable; StoreError when these are not safetensors."""
    try:
        flat = load(content)
    except Exception as error:  # safetensors raises a bare Exception subclass of its own
        raise StoreError(f"a part is not safetensors: {error}") from error
    arrays: dict[str, NDArray[Any]] = {}
    for name, array in flat.items():
        if name.endswith(_ENDS):
            continue
        if name.endswith(_TEXT):
            ends = flat[name.removesuffix(_TEXT) + _ENDS]
            starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
            raw = array.tobytes()
            texts = [raw[start:end].decode() for start, end in zip(starts, ends, strict=True)]
            arrays[name.removesuffix(_TEXT)] = np.array(texts, dtype=object)
        else:
            arrays[name] = array
    return arrays
