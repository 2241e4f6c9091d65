"""One line that puts the fused layers in place of torch's in an existing model."""

from __future__ import annotations

import logging
from typing import TypeVar

import torch
from torch import nn

from deeprec.nn.embedding import Embedding
from deeprec.nn.embedding_bag import EmbeddingBag

_logger = logging.getLogger("deeprec")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_Model = TypeVar("_Model", bound=nn.Module)


def _why_left(module: nn.Module) -> str:
    """Why a torch embedding is not replaced; "" where it is."""
    if type(module) not in (nn.Embedding, nn.EmbeddingBag):
        return f"it is of the subclass {type(module).__name__}, which may compute something else"
    if "forward" in vars(module):
        return "its forward was replaced"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(vars(module).get(key) for key in hooks):
        return "it has hooks, which may count on how torch computes it"
    if module.weight.dtype not in _DTYPES:
        return f"the kernels do not take {module.weight.dtype}"
    return ""


def replace_embeddings(model: _Model, *, sparse: bool | None = None) -> _Model:
    """Put `deeprec.nn.Embedding` and `EmbeddingBag` in place of torch's, everywhere in a model.

    Each module stays the object it is, with its parameters, buffers and attributes: only what it computes with changes,
    so shared modules and shared weights stay shared, and optimizers made before go on. Its path in the model becomes
    its name in errors. Modules with hooks, parametrizations, a forward of their own or of a subclass are left as they
    are. What was replaced, and what was left and why, goes to the logger "deeprec" (INFO and WARNING).

    Args:
        model: any module; an embedding itself as well.
        sparse: sparse (True) or dense (False) gradients for every replaced module; None: as each has it.
    Returns:
        model.
    """
    replaced = []
    for path, module in model.named_modules():
        if not isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or isinstance(module, (Embedding, EmbeddingBag)):
            continue
        reason = _why_left(module)
        if reason:
            _logger.warning("replace_embeddings: %r stays %s: %s", path, type(module).__name__, reason)
            continue
        # The layers add methods to torch's, and nothing that an instance would have to hold.
        module.__class__ = Embedding if type(module) is nn.Embedding else EmbeddingBag
        module.name = path
        module.sparse = module.sparse if sparse is None else sparse
        replaced.append(path or type(model).__name__)
    _logger.info("replace_embeddings: replaced %d: %s", len(replaced), ", ".join(replaced) or "none")
    return model
