"""Tensors into a safetensors file without a copy of them in memory, which tables of gigabytes have no room for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from deeprec._files import write_pieces_atomically

# Names of the format, which `safetensors` reads.
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
SEAL = "sha256"
_SEAL_BYTES = hashlib.sha256().digest_size
_PIECE = 64 << 20  # bytes that are hashed and written at a time


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, *, sealed: bool = False
) -> str:
    """Replace `path` by a safetensors file of `tensors`; tensors that share memory are written for each name.

    Args:
        path: in a folder there is.
        tensors: by name, on any device; one that is not contiguous or not on the CPU is copied while it is written.
        metadata: words for the header.
        sealed: end with a tensor `SEAL`, the SHA-256 of all before it, which `require_sealed` checks.
    Returns:
        Hexadecimal SHA-256 of the file, of a sealed one without its seal.
    Raises:
        OSError: not writable or disk full; the file that was there is then untouched.
    """
    # Wide elements first and the header padded to 8 bytes, so that each tensor lies where its elements are aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    if sealed:
        header[SEAL] = {"dtype": "U8", "shape": [_SEAL_BYTES], "data_offsets": [end, end + _SEAL_BYTES]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()

    def pieces() -> Iterator[bytes | memoryview]:
        yield len(head).to_bytes(8, "little") + head
        for name in filter(lambda name: tensors[name].numel(), names):  # an empty one may have the stride 0
            flat = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            for start in range(0, len(flat), _PIECE):
                yield memoryview(flat[start : start + _PIECE])

    def hashed() -> Iterator[bytes | memoryview]:
        for piece in pieces():
            digest.update(piece)
            yield piece
        if sealed:
            yield digest.digest()

    write_pieces_atomically(path, hashed())
    return digest.hexdigest()


def require_sealed(path: Path) -> None:
    """Raise ValueError unless the file ends with the SHA-256 of all before it; it is read a piece at a time."""
    left = path.stat().st_size - _SEAL_BYTES
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while left > 0 and (piece := file.read(min(_PIECE, left))):
            digest.update(piece)
            left -= len(piece)
        if left or file.read() != digest.digest():
            raise ValueError("its checksum is another")
