"""From a trained model to lists of items, external ids in and out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.data import IdMap
from deeprec.kernels.sample_negatives import sample_negatives
from deeprec.kernels.score_topk import DotScorer, score_topk
from deeprec.models.base import Recommender, Seen

_USERS_A_BLOCK = 1024
_FOLD_IN_STEPS = 100
_FOLD_IN_LR = 0.05
_FOLD_IN_NEGATIVES = 4


def recommend(model: Recommender, user_ids: Any, k: int = 10, *, exclude_seen: bool = True) -> pl.DataFrame:
    """The k best items for each user.

    Args:
        user_ids: one external id or a sequence of them.
        k: list length, >= 1.
        exclude_seen: leave out the items each user has met in the data the model was fitted on.
    Returns:
        user_id, rank (from 1), item_id, score; fewer than k rows for a user who has seen nearly everything.
    Raises:
        ValueError: an unknown user (for a new one use `recommend_for_history`) or k < 1.
    """
    users_map, items_map = id_maps(model)
    _require_k(k)
    wanted = _as_list(user_ids)
    users = torch.from_numpy(users_map.encode(wanted)).long()
    k = min(k, len(items_map))
    blocks = [
        model.topk(block, k, model.seen if exclude_seen else None)
        for block in users.split(_USERS_A_BLOCK)
        if len(block)
    ]
    return _ranked("user_id", pl.Series(wanted), blocks, items_map, "item_id", k)


def recommend_for_history(model: Recommender, item_ids: Any, k: int = 10, *, ratings: Any = None) -> pl.DataFrame:
    """The k best further items for a user whom the model never saw.

    A model that knows no way of its own fits the user's vectors to the history with every other weight frozen: logistic
    loss over the items and seeded negatives, from the mean user (the same call gives the same list).

    Args:
        item_ids: external ids of the items the user liked (without ratings) or rated, at least one.
        k: list length, >= 1.
        ratings: what the user gave each item, in the units of the data; for models that predict ratings.
    Returns:
        rank (from 1), item_id, score.
    Raises:
        ValueError: an empty history, an unknown item, ratings that do not fit, or k < 1.
    """
    _, items_map = id_maps(model)
    _require_k(k)
    wanted = _as_list(item_ids)
    if not wanted:
        raise ValueError("recommend_for_history: item_ids must hold at least one item, got none; try popularity")
    if ratings is None:
        history = np.unique(items_map.encode(wanted))
        rows = fold_in(model, torch.from_numpy(history).long())
    else:
        items, given = _rated("recommend_for_history", wanted, ratings, items_map)
        rows, history = model.rows_for_ratings(items, given), items.numpy()
    seen = Seen(np.array([0, len(history)], dtype=np.int64), history.astype(np.int32))
    top = model.topk_from_rows(rows, min(k, len(items_map)), seen)
    return _ranked("user_id", pl.Series([0]), [top], items_map, "item_id", k).drop("user_id")


def predict_for_user(model: Recommender, item_ids: Any, ratings: Any) -> pl.DataFrame:
    """Ratings of every item by a user whom the model never saw, nothing trained anew.

    Args:
        item_ids: external ids of the items the user rated, at least one.
        ratings: what the user gave each, in the units of the data.
    Returns:
        item_id, rating (within the range of the training ratings).
    Raises:
        ValueError: an unknown item, ratings that do not fit, or a model that predicts no ratings.
    """
    _, items_map = id_maps(model)
    rows = model.rows_for_ratings(*_rated("predict_for_user", _as_list(item_ids), ratings, items_map))
    return _all_ratings(model, "item_id", items_map, model.score_items_from_rows(rows)[0])


def predict_for_item(model: Recommender, user_ids: Any, ratings: Any) -> pl.DataFrame:
    """Ratings by every user of an item that the model never saw, nothing trained anew.

    Args:
        user_ids: external ids of the users who rated it, at least one.
        ratings: what each gave, in the units of the data.
    Returns:
        user_id, rating (within the range of the training ratings).
    Raises:
        ValueError: an unknown user, ratings that do not fit, or a model that predicts no ratings.
    """
    users_map, _ = id_maps(model)
    given = _rated("predict_for_item", _as_list(user_ids), ratings, users_map)
    return _all_ratings(model, "user_id", users_map, model.rate_new_item(*given))


def _rated(function: str, ids: list[Any], ratings: Any, known: IdMap) -> tuple[Tensor, Tensor]:
    """Internal ids in ascending order with their ratings."""
    given = np.asarray(_as_list(ratings), dtype=np.float32)
    if not ids or given.shape != (len(ids),) or not np.isfinite(given).all():
        raise ValueError(
            f"{function}: ratings must be one finite number for each {known.name}, at least one, got {len(ids)} "
            f"{known.name}s and ratings {given[:5].tolist()}"
        )
    indices, places = np.unique(known.encode(ids), return_index=True)
    if len(indices) < len(ids):
        raise ValueError(f"{function}: each {known.name} may be rated once, got {len(ids)} ratings of {len(indices)}")
    return torch.from_numpy(indices).long(), torch.from_numpy(given[places])


def _all_ratings(model: Recommender, column: str, known: IdMap, ratings: Tensor) -> pl.DataFrame:
    limits: Tensor | None = getattr(model, "limits", None)
    ratings = ratings if limits is None else ratings.clamp(*limits.tolist())
    return pl.DataFrame({column: known.decode(np.arange(len(known))), "rating": ratings.numpy()})


def fold_in(model: Recommender, history: Tensor) -> tuple[Tensor, ...]:
    """User rows [1, D] for a new user, fitted to `history` [n] (item indices) with the model frozen."""
    schema = model.require_built()
    known = model.rows_for_history(history)
    if known is not None:
        return known
    sample = torch.arange(min(schema.num_users, _USERS_A_BLOCK))
    rows = tuple(table.mean(0, keepdim=True).detach() for table in model.user_rows(sample))
    if not any(row.numel() for row in rows) or len(history) == schema.num_items:
        return rows
    rows = tuple(row.requires_grad_() for row in rows)
    offsets = torch.tensor([0, len(history)])
    optimizer = torch.optim.Adam(rows, lr=_FOLD_IN_LR)
    with torch.enable_grad():
        for step in range(_FOLD_IN_STEPS):
            negatives = sample_negatives(
                torch.zeros(len(history), dtype=torch.int32),
                offsets,
                history.to(torch.int32),
                schema.num_items,
                _FOLD_IN_NEGATIVES,
                seed=0,
                offset=step * len(history),
            )
            items = torch.cat([history, negatives.flatten().long()])
            labels = (torch.arange(len(items)) < len(history)).float()
            logits = model.forward_rows(tuple(row.expand(len(items), -1) for row in rows), items)
            gradients = torch.autograd.grad(F.binary_cross_entropy_with_logits(logits, labels), rows)
            for row, gradient in zip(rows, gradients, strict=True):
                row.grad = gradient
            optimizer.step()
    return tuple(row.detach() for row in rows)


def similar_items(model: Recommender, item_ids: Any, k: int = 10) -> pl.DataFrame:
    """The k nearest items to each item by the cosine of the model's item vectors, the item itself left out.

    Returns:
        item_id, rank (from 1), similar_item_id, score in [-1, 1].
    """
    _, items_map = id_maps(model)
    _require_k(k)
    wanted = _as_list(item_ids)
    items = items_map.encode(wanted)
    vectors = F.normalize(model.item_vectors().float(), dim=1)
    own = Seen(np.arange(len(items) + 1, dtype=np.int64), items.astype(np.int32))
    k = min(k, len(items_map))
    top = score_topk(
        DotScorer(vectors[torch.from_numpy(items).long()], vectors),
        k,
        seen_indptr=torch.from_numpy(own.offsets),
        seen_indices=torch.from_numpy(own.items),
    )
    return _ranked("item_id", pl.Series(wanted), [top], items_map, "similar_item_id", k)


def score(model: Recommender, pairs: Any) -> np.ndarray:
    """Scores of (user, item) pairs.

    Args:
        pairs: a polars or pandas frame with columns user_id and item_id, or a sequence of (user id, item id).
    Returns:
        [n] float32; larger is better (a logit for models trained with the logistic loss).
    Raises:
        ValueError: an unknown user or item, or something that is not pairs.
    """
    users_map, items_map = id_maps(model)
    if hasattr(pairs, "columns"):
        missing = [name for name in ("user_id", "item_id") if name not in pairs.columns]
        if missing:
            raise ValueError(f"score: pairs must have columns user_id and item_id, got {list(pairs.columns)}")
        users, items = list(pairs["user_id"]), list(pairs["item_id"])
    else:
        listed = [tuple(pair) for pair in pairs]
        if any(len(pair) != 2 for pair in listed):
            raise ValueError("score: pairs must be (user id, item id) tuples, or a frame with user_id and item_id")
        users, items = [pair[0] for pair in listed], [pair[1] for pair in listed]
    if not users:
        return np.zeros(0, dtype=np.float32)
    scores = model.score_pairs(
        torch.from_numpy(users_map.encode(users)).long(), torch.from_numpy(items_map.encode(items)).long()
    )
    return scores.numpy()


def _ranked(
    key: str, keys: pl.Series, blocks: Sequence[tuple[Tensor, Tensor]], items_map: IdMap, column: str, k: int
) -> pl.DataFrame:
    """Top-k blocks as one long frame; empty places (-1) are left out."""
    scores = torch.cat([values for values, _ in blocks]).numpy()
    items = torch.cat([indices for _, indices in blocks]).numpy()
    found = items >= 0
    ranks = np.broadcast_to(np.arange(1, items.shape[1] + 1), items.shape)
    return pl.DataFrame(
        {
            key: keys.gather(np.nonzero(found)[0]),
            "rank": ranks[found],
            column: items_map.decode(items[found]),
            "score": scores[found].astype(np.float32),
        }
    )


def id_maps(model: Recommender) -> tuple[IdMap, IdMap]:
    """Users' and items' ids."""
    if model.user_ids is None or model.item_ids is None:
        raise ValueError(f"{model.name}: the model has no id maps; call fit(data) or load one with deeprec.load(dir)")
    return model.user_ids, model.item_ids


def _as_list(values: Any) -> list[Any]:
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        return [values]
    return list(values)


def _require_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"recommend: k must be >= 1, got {k}")
