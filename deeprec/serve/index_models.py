"""What an index takes of a model: the vectors of its items, users to ask with, and a mark that says whose they are."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deeprec.contract import RETRIEVES, AnyModel, Queries
from deeprec.data import IdMap
from deeprec.nn.scoring import AnyScorer, DotScorer, MappedScorer, NCFScorer
from deeprec.registry import require_capability
from deeprec.surroundings import served

_PIECE = 1 << 20  # rows that are hashed at a time


class DotSide(NamedTuple):
    """A scorer as a dot product, and what makes scores of its values.

    Attributes:
        scorer: users, items and item bias.
        finish: of values [b, k], to the model's scores; it ascends for each user.
    """

    scorer: DotScorer
    finish: Callable[[Tensor], Tensor]


def dot_side(model: AnyModel, scorer: AnyScorer) -> DotSide:
    """The scorer of a model as a dot product.

    Raises:
        ValueError: it is none; names the models whose is.
    """
    if type(scorer) is DotScorer:  # its kinds, such as cosines, are none
        return DotSide(scorer, lambda values: values)
    if isinstance(scorer, MappedScorer) and type(scorer.scorer) is DotScorer:
        function, by_user = scorer.function, scorer.by_user
        return DotSide(scorer.scorer, lambda values: function(values, by_user))
    if isinstance(scorer, NCFScorer) and scorer.user_hidden is None and scorer.user_factors is not None:
        assert scorer.item_factors is not None
        shift = 0.0 if scorer.out_bias is None else scorer.out_bias
        users = scorer.user_factors * scorer.out_weight.reshape(1, -1)
        return DotSide(DotScorer(users, scorer.item_factors), lambda values: values + shift)
    require_capability(model, "ItemIndex", RETRIEVES)
    raise ValueError(
        f"ItemIndex: the scores of {model.name} must be a dot product with item vectors, which they are not with its "
        "present options; recommend without an index"
    )


@served
def side_of(model: AnyModel, count: int) -> DotScorer:
    """The items of a model, and at most `count` users spread evenly over those it knows; on the CPU.

    Raises:
        ValueError: a model without data or ids, or whose scores are no dot product.
    """
    require_capability(model, "ItemIndex", RETRIEVES)
    model.require_built()
    if model.user_ids is None or model.item_ids is None:
        raise ValueError(f"{model.name}: the model has no id maps; call fit(data) or load one with deeprec.load(dir)")
    known = len(model.user_ids)
    users = torch.linspace(0, known - 1, min(count, known), dtype=torch.float64).long().to(model.device)
    scorer = dot_side(model, model.scorer(model.encode(Queries(users)))).scorer
    plain = (None if each is None else each.detach().float().cpu() for each in scorer)
    return DotScorer(*plain)  # type: ignore[arg-type]


def fingerprint(vectors: Tensor, bias: Tensor | None, ids: IdMap) -> str:
    """SHA-256 of item vectors, their bias and ids, whatever device they are on."""
    digest = hashlib.sha256(f"{list(vectors.shape)} {bias is not None} {ids.sha256()}".encode())
    for tensor in (vectors,) if bias is None else (vectors, bias):
        for rows in tensor.detach().split(_PIECE):
            digest.update(np.ascontiguousarray(rows.float().cpu().numpy()).tobytes())
    return digest.hexdigest()


def require_index_of(model: AnyModel, index: Any, side: DotScorer) -> None:
    """Raise ValueError unless the index was built of these items of the model; compared once a version of weights."""
    now = weights_of(model)
    known = index.verified
    if known is not None and len(now) == len(known) and all(map(_is_same, known, now)):
        return
    if index.source != fingerprint(side.items, side.item_bias, model.item_ids):
        raise ValueError(
            f"recommend: the index must be one of this {model.name}, got one of other item vectors or ids; build it "
            "anew: model.build_index(), or deeprec index DIR"
        )
    index.verified = now


def weights_of(model: AnyModel) -> list[tuple[Any, ...]]:
    """The tensors of a model, weakly, and what is another when the numbers in them may be others."""
    tensors = [*model.parameters(), *model.buffers()]
    return [(weakref.ref(each), each.data_ptr(), -1 if each.is_inference() else each._version) for each in tensors]


def _is_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return one[0]() is other[0]() is not None and one[1:] == other[1:]
