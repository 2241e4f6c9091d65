"""From a trained model to lists of items, external ids in and out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from deeprec.contract import AnyModel, Seen
from deeprec.data import IdMap
from deeprec.device import device_of, to_device
from deeprec.kernels.sample_negatives import sample_negatives
from deeprec.kernels.score_topk import DotScorer, score_topk
from deeprec.serve.arguments import codes_of, pairs_of, ratings_of, require_flag, require_k
from deeprec.surroundings import served

_USERS_A_BLOCK = 1024
_FOLD_IN_STEPS = 100
_FOLD_IN_LR = 0.05
_FOLD_IN_NEGATIVES = 4


@served
def recommend(model: AnyModel, user_ids: Any, k: int = 10, *, exclude_seen: bool = True) -> pl.DataFrame:
    """The k best items for each user.

    Args:
        user_ids: one external id or a sequence of them; none gives an empty frame, a repeated one a list each time.
        k: list length, >= 1.
        exclude_seen: leave out the items each user has met in the data the model was fitted on.
    Returns:
        user_id, rank (from 1), item_id, score; fewer than k rows for a user who has seen nearly everything.
    Raises:
        ValueError: an unknown user (for a new one use `recommend_for_history`) or k < 1.
        TypeError: ids of another type than the data's, a k that is no whole number, or no flag.
    """
    users_map, items_map = id_maps(model)
    k = min(require_k("recommend", k), len(items_map))
    seen = model.seen if require_flag("recommend", "exclude_seen", exclude_seen) else None
    users = codes_of("recommend", "user_ids", user_ids, users_map)
    starts = range(0, len(users), _USERS_A_BLOCK)
    blocks = [model.topk(_there(model, users[at : at + _USERS_A_BLOCK]).long(), k, seen) for at in starts]
    places, ranked = _ranked(blocks, k, items_map, "item_id")
    return pl.DataFrame([users_map.values.gather(users[places]).alias("user_id"), *ranked])


@served
def recommend_for_history(model: AnyModel, item_ids: Any, k: int = 10, *, ratings: Any = None) -> pl.DataFrame:
    """The k best further items for a user whom the model never saw.

    A model that knows no way of its own fits the user's vectors to the history with every other weight frozen: logistic
    loss over the items and seeded negatives, from the mean user (the same call gives the same list).

    Args:
        item_ids: external ids of the items the user liked (without ratings) or rated, at least one.
        k: list length, >= 1.
        ratings: what the user gave each item, in the units of the data; for models that predict ratings, which hold
            them to the range of the training ratings.
    Returns:
        rank (from 1), item_id, score.
    Raises:
        ValueError: an empty history, an unknown item, ratings that do not fit, or k < 1.
        TypeError: ids of another type than the data's, ratings that are no numbers, or a k that is no whole number.
    """
    _, items_map = id_maps(model)
    k = min(require_k("recommend_for_history", k), len(items_map))
    if ratings is None:
        history = np.unique(codes_of("recommend_for_history", "item_ids", item_ids, items_map))
        if not len(history):
            raise ValueError("recommend_for_history: item_ids must hold at least one item, got none; try popularity")
        rows = fold_in(model, _there(model, history).long())
    else:
        history, given = _rated("recommend_for_history", "item_ids", item_ids, ratings, items_map)
        rows = model.rows_for_ratings(_there(model, history).long(), _there(model, given))
    seen = Seen(np.array([0, len(history)], dtype=np.int64), history.astype(np.int32))
    _, ranked = _ranked([model.topk_from_rows(rows, k, seen)], k, items_map, "item_id")
    return pl.DataFrame(ranked)


@served
def predict_for_user(model: AnyModel, item_ids: Any, ratings: Any) -> pl.DataFrame:
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
    items, given = _rated("predict_for_user", "item_ids", item_ids, ratings, items_map)
    rows = model.rows_for_ratings(_there(model, items).long(), _there(model, given))
    return _all_ratings(model, "item_id", items_map, model.score_items_from_rows(rows)[0])


@served
def predict_for_item(model: AnyModel, user_ids: Any, ratings: Any) -> pl.DataFrame:
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
    users, given = _rated("predict_for_item", "user_ids", user_ids, ratings, users_map)
    found = model.rate_new_item(_there(model, users).long(), _there(model, given))
    return _all_ratings(model, "user_id", users_map, found)


def _there(model: AnyModel, values: NDArray[Any]) -> Tensor:
    """The values where the model is."""
    return to_device(torch.from_numpy(values), device_of(model))


def _rated(
    function: str, argument: str, ids: Any, ratings: Any, known: IdMap
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Internal ids in ascending order with their ratings."""
    codes = codes_of(function, argument, ids, known)
    given = ratings_of(function, ratings, len(codes), known.name)
    if not len(codes):
        raise ValueError(
            f"{function}: {argument} must hold at least one {known.name}, got none; pass one with its rating"
        )
    indices, places = np.unique(codes, return_index=True)
    if len(indices) < len(codes):
        raise ValueError(
            f"{function}: each {known.name} may be rated once, got {len(codes)} ratings of {len(indices)}; keep one"
        )
    return indices, given[places]


def _all_ratings(model: AnyModel, column: str, known: IdMap, ratings: Tensor) -> pl.DataFrame:
    limits: Tensor | None = getattr(model, "limits", None)
    ratings = ratings if limits is None else ratings.clamp(*limits)
    return pl.DataFrame([known.values.alias(column), pl.Series("rating", ratings.cpu().numpy())])


@served
def fold_in(model: AnyModel, history: Tensor) -> tuple[Tensor, ...]:
    """User rows [1, D] for a new user, fitted to `history` [n] (item indices) with the model frozen."""
    schema = model.require_built()
    known: tuple[Tensor, ...] | None = model.rows_for_history(history)
    if known is not None:
        return known
    device = history.device
    sample = torch.arange(min(schema.num_users, _USERS_A_BLOCK), device=device)
    rows = tuple(table.mean(0, keepdim=True).detach() for table in model.user_rows(sample))
    if not any(row.numel() for row in rows) or len(history) == schema.num_items:
        return rows
    rows = tuple(row.requires_grad_() for row in rows)
    offsets = torch.arange(2, device=device) * len(history)
    # Those of all steps in one call: a look at the device, and they do not depend on how they are split.
    negatives = sample_negatives(
        torch.zeros(_FOLD_IN_STEPS * len(history), dtype=torch.int32, device=device),
        offsets,
        history.to(torch.int32),
        schema.num_items,
        _FOLD_IN_NEGATIVES,
        seed=0,
    ).view(_FOLD_IN_STEPS, -1)
    optimizer = torch.optim.Adam(rows, lr=_FOLD_IN_LR)
    with torch.enable_grad():
        for drawn in negatives.unbind():
            items = torch.cat([history, drawn.long()])
            labels = (torch.arange(len(items), device=device) < len(history)).float()
            logits = model.forward_rows(tuple(row.expand(len(items), -1) for row in rows), items)
            gradients = torch.autograd.grad(F.binary_cross_entropy_with_logits(logits, labels), rows)
            for row, gradient in zip(rows, gradients, strict=True):
                row.grad = gradient
            optimizer.step()
    return tuple(row.detach() for row in rows)


@served
def similar_items(model: AnyModel, item_ids: Any, k: int = 10) -> pl.DataFrame:
    """The k nearest items to each item by the cosine of the model's item vectors, the item itself left out.

    Returns:
        item_id, rank (from 1), similar_item_id, score in [-1, 1].
    """
    _, items_map = id_maps(model)
    k = min(require_k("similar_items", k), len(items_map))
    codes = codes_of("similar_items", "item_ids", item_ids, items_map)
    vectors = F.normalize(model.item_vectors().float(), dim=1)
    blocks = []
    if len(codes):
        own = torch.arange(len(codes) + 1, device=vectors.device), _there(model, codes)
        scorer = DotScorer(vectors[own[1].long()], vectors)
        blocks.append(score_topk(scorer, k, seen_indptr=own[0], seen_indices=own[1]))
    places, ranked = _ranked(blocks, k, items_map, "similar_item_id")
    return pl.DataFrame([items_map.values.gather(codes[places]).alias("item_id"), *ranked])


@served
def score(model: AnyModel, pairs: Any) -> np.ndarray:
    """Scores of (user, item) pairs.

    Args:
        pairs: a polars or pandas frame with columns user_id and item_id, or a sequence of (user id, item id).
    Returns:
        [n] float32; larger is better (a logit for models trained with the logistic loss).
    Raises:
        ValueError: an unknown user or item, or something that is not pairs.
    """
    users_map, items_map = id_maps(model)
    users, items = pairs_of("score", pairs)
    user_codes = codes_of("score", "user_id", users, users_map)
    item_codes = codes_of("score", "item_id", items, items_map)
    if not len(user_codes):
        return np.zeros(0, dtype=np.float32)
    scores = model.score_pairs(_there(model, user_codes).long(), _there(model, item_codes).long())
    found: np.ndarray = scores.cpu().numpy()
    return found


def _ranked(
    blocks: Sequence[tuple[Tensor, Tensor]], k: int, items_map: IdMap, column: str
) -> tuple[NDArray[np.int64], list[pl.Series]]:
    """Top-k blocks as long columns without empty places (-1): which list each row is of; rank, `column` and score."""
    scores = np.concatenate([np.empty((0, k), np.float32), *(values.cpu().numpy() for values, _ in blocks)])
    items = np.concatenate([np.empty((0, k), np.int64), *(indices.cpu().numpy() for _, indices in blocks)])
    found = items >= 0
    places, ranks = np.nonzero(found)
    columns = [
        pl.Series("rank", ranks + 1),
        items_map.values.gather(items[found]).alias(column),
        pl.Series("score", scores[found].astype(np.float32)),
    ]
    return places, columns


def id_maps(model: AnyModel) -> tuple[IdMap, IdMap]:
    """Users' and items' ids."""
    if model.user_ids is None or model.item_ids is None:
        raise ValueError(f"{model.name}: the model has no id maps; call fit(data) or load one with deeprec.load(dir)")
    return model.user_ids, model.item_ids
