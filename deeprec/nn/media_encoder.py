"""What the encoders of media share: one contract, a batch to [B, D], and a folder of options and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deeprec._files import make_folder, read_json, read_regular, write_atomically

OPTIONS, WEIGHTS = "encoder.json", "weights.safetensors"


class MediaEncoder(nn.Module):
    """A module from a batch of texts, pictures, sounds or videos to vectors [B, width].

    Attributes:
        width: D of the vectors.
        options: what the module was made with, as JSON keeps it.
    """

    kinds: ClassVar[dict[str, type[MediaEncoder]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        MediaEncoder.kinds[cls.__name__] = cls

    def __init__(self, width: int, options: dict[str, Any]) -> None:
        super().__init__()
        owner = type(self).__name__
        if width < 1:
            raise ValueError(f"{owner}: width must be >= 1, got {width}")
        self.width, self.options = width, {"width": width, **options}

    def save(self, folder: str | Path) -> Path:
        """Write encoder.json, the kind and its options, and weights.safetensors into `folder`, made if it is not there.

        Returns:
            the folder.
        """
        from safetensors.torch import save as save_tensors  # layers themselves need torch and numpy alone

        place = Path(folder)
        make_folder(place)
        # Files of safetensors cannot hold two names of one storage, nor a tensor with gaps.
        weights = {name: value.detach().cpu().contiguous().clone() for name, value in self.state_dict().items()}
        write_atomically(place / WEIGHTS, save_tensors(weights))
        described = {"encoder": type(self).__name__, "options": self.options}
        write_atomically(place / OPTIONS, (json.dumps(described, indent=1) + "\n").encode())
        return place

    @classmethod
    def load(cls, folder: str | Path) -> Any:
        """What `save` wrote, in evaluation mode on the CPU; nothing in the files is executed.

        Raises:
            FileNotFoundError. ValueError: files that are damaged, of no encoder, or of another one than the class says.
        """
        path, owner, remedy = Path(folder) / OPTIONS, f"{cls.__name__}.load", "save the encoder anew"
        described = read_json(path, owner, remedy)
        name = described.get("encoder")
        kind = MediaEncoder.kinds.get(name) if isinstance(name, str) else None
        if kind is None or not issubclass(kind, cls):
            expected = ", ".join(sorted(each for each, kind in MediaEncoder.kinds.items() if issubclass(kind, cls)))
            raise ValueError(f"{owner}: {path} must be of {expected}, got {name!r}; load it with its own class")
        try:
            encoder = kind(**described["options"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{owner}: {path} must hold the options of {name}, got {error}; {remedy}") from None
        encoder.load_weights(Path(folder) / WEIGHTS)
        return encoder.eval()

    def load_weights(self, path: str | Path) -> None:
        """Take over the weights of a file of safetensors with the names and shapes of the state dict.

        Raises:
            FileNotFoundError. ValueError: a file that is damaged, or of other names or shapes; nothing is changed.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load as load_tensors

        owner, place = f"{type(self).__name__}.load_weights", Path(path)
        try:
            given = load_tensors(read_regular(place, owner, "name a file of safetensors"))
        except SafetensorError as error:
            raise ValueError(f"{owner}: {place} must be a file of safetensors, got {error}; save it anew") from None
        own = self.state_dict()
        for name in sorted(own.keys() ^ given.keys()):
            what = "lacks" if name in own else "has an unknown"
            raise ValueError(f"{owner}: {place} {what} {name!r}; take weights of a {type(self).__name__} like this one")
        for name, value in own.items():
            if value.shape != given[name].shape:
                raise ValueError(
                    f"{owner}: {name} must be {list(value.shape)}, got {list(given[name].shape)} in {place}; make the "
                    "encoder with the options of the file"
                )
        self.load_state_dict(given)


@torch.no_grad()
def draw_weights(module: nn.Module, generator: torch.Generator | None) -> None:
    """Kaiming uniform weights for convolutions and linear layers, biases 0, in the order of the modules.

    Reference: He et al. 2015 (arXiv 1502.01852), eq. 10.
    """
    for part in module.modules():
        if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            nn.init.kaiming_uniform_(part.weight, nonlinearity="relu", generator=generator)
            if part.bias is not None:
                part.bias.zero_()


def at_least_one(owner: str, **sizes: int) -> None:
    """Raise ValueError for a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{owner}: {name} must be >= 1, got {size}")


def check_lengths(owner: str, lengths: Tensor, batch: int) -> None:
    """Raise ValueError or TypeError unless lengths is [B] of whole numbers."""
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise TypeError(f"{owner}: lengths must be whole numbers, got {lengths.dtype}")
    if tuple(lengths.shape) != (batch,):
        raise ValueError(f"{owner}: lengths must be [{batch}], one for each row, got {list(lengths.shape)}")
