"""From a trained model to lists of items, external ids in and out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec._suggest import did_you_mean
from deeprec.contract import AnyModel, Queries
from deeprec.data import IdMap
from deeprec.device import device_of, to_device
from deeprec.nn.scoring import AnyScorer, CosineScorer, DotScorer, Lists, TopK, score_items, topk
from deeprec.serve.arguments import codes_of, pairs_of, ratings_of, require_flag, require_k
from deeprec.serve.index import ItemIndex
from deeprec.serve.index_models import dot_side, require_index_of
from deeprec.surroundings import served

UNKNOWN = ("raise", "popularity", "skip")  # what becomes of users whom the model does not know
_USERS_A_BLOCK = 1024


@served
def recommend(
    model: AnyModel,
    user_ids: Any,
    k: int = 10,
    *,
    exclude_seen: bool = True,
    allow: Any = None,
    deny: Any = None,
    unknown: str = "raise",
    index: ItemIndex | None = None,
) -> pl.DataFrame:
    """The k best items for each user.

    Args:
        user_ids: one external id or a sequence of them; none gives an empty frame, a repeated one a list each time.
        k: list length, >= 1.
        exclude_seen: leave out the items each user has met in the data the model was fitted on.
        allow: external ids of the only items that may come; None: all.
        deny: external ids of items that may not come; they win over `allow`.
        unknown: what becomes of users whom the model does not know: "raise" an error; "popularity" gives them the
            items with the most interactions in the data the model was fitted on, their number as the score; "skip"
            leaves them out.
        index: one of this model, which then answers: with items that were added to it, without those that were deleted
            from it, and, where it is approximate, with nearly all of the best items. None: the model itself.
    Returns:
        user_id, rank (from 1), item_id, score; fewer than k rows for a user to whom fewer items are left. With
        unknown="popularity" also fallback, true in the rows of users whom the model does not know.
    Raises:
        ValueError: an unknown user, where `unknown` says so (one with a history: `recommend_for_history`), or item, or
            k < 1; popularity of a model that keeps no interactions; or an index of another model.
        TypeError: ids of another type than the data's, a k that is no whole number, or no flag.
    """
    name = "recommend"
    users_map, items_map = id_maps(model)
    k = min(require_k(name, k), len(items_map))
    seen = model.seen if require_flag(name, "exclude_seen", exclude_seen) else None
    ids, users = asked_users(name, user_ids, users_map, unknown)
    named = {"allow": allow, "deny": deny}
    filters = {each: item_filter(name, each, items, items_map) for each, items in named.items()}
    popular = _most_popular(model, k, **filters) if unknown == "popularity" else None
    blocks: list[TopK] = []
    for at in range(0, len(users), _USERS_A_BLOCK):
        block = users[at : at + _USERS_A_BLOCK]
        asked = _there(model, block[block >= 0]).long()
        if index is None:
            lists = model.topk(asked, k, seen, **filters)
        else:
            met = None if seen is None else (torch.from_numpy(seen.offsets), torch.from_numpy(seen.items))
            rows, scorer = torch.from_numpy(block[block >= 0]), model.scorer(model.encode(Queries(asked)))
            lists = by_index(model, index, scorer, k, met, rows, **filters)
        blocks.append(lists if popular is None else _filled(block >= 0, lists, popular))
    places, ranked = ranked_columns(blocks, k, items_map if index is None else index.ids, "item_id")
    columns = [ids.gather(places).alias("user_id"), *ranked]
    if popular is not None:
        columns.append(pl.Series("fallback", users[places] < 0, dtype=pl.Boolean))
    return pl.DataFrame(columns)


def by_index(
    model: AnyModel,
    index: ItemIndex,
    scorer: AnyScorer,
    k: int,
    seen: Lists | None,
    seen_rows: Tensor | None = None,
    allow: NDArray[np.int32] | None = None,
    deny: NDArray[np.int32] | None = None,
) -> TopK:
    """Lists [b, k] on the CPU by an index of the model, for the users of a scorer; `seen` as `nn.scoring.topk` has it.

    Raises:
        ValueError: an index of another model.
    """
    side = dot_side(model, scorer)
    require_index_of(model, index, side.scorer)
    users = side.scorer.users.detach()
    values, items = index.topk(users, k, seen=seen, seen_rows=seen_rows, allow=allow, deny=deny)
    scores = side.finish(to_device(values, users.device)).cpu()
    return TopK(torch.where(items < 0, -torch.inf, scores), items)


def asked_users(function: str, user_ids: Any, users_map: IdMap, unknown: str) -> tuple[pl.Series, NDArray[np.int32]]:
    """Those who are served, as external ids [n] in the type of the data's, and as indices [n], -1 for unknown ones.

    Raises:
        ValueError, TypeError: as `recommend`.
    """
    if unknown not in UNKNOWN:
        raise ValueError(f"{function}: unknown must be one of {', '.join(UNKNOWN)}, got {unknown!r}; "
                         f"{did_you_mean(str(unknown), UNKNOWN)}")  # fmt: skip
    remedy = "pass unknown='popularity' or 'skip' (--unknown popularity), or what they did to recommend_for_history"
    index = None if unknown == "raise" else -1
    users = codes_of(function, "user_ids", user_ids, users_map, unknown=index, remedy=remedy)
    if unknown == "popularity" and (users < 0).any():
        return users_map.typed(user_ids), users
    users = users[users >= 0]
    return users_map.values.gather(users), users


def _most_popular(model: AnyModel, k: int, allow: NDArray[np.int32] | None, deny: NDArray[np.int32] | None) -> TopK:
    """Counts and items [1, k] of those with the most interactions, on the CPU; as `Popularity` ranks them."""
    if model.seen is None:
        raise ValueError(
            f"recommend: unknown='popularity' needs a model that keeps its interactions, got {model.name} without; fit "
            "it with fit(data), or take unknown='skip'"
        )
    counts = np.bincount(model.seen.items, minlength=len(model.item_ids)).astype(np.float32)
    scorer = DotScorer(torch.ones(1, 1), torch.from_numpy(counts).unsqueeze(1))
    return topk(scorer, k, allow=allow, deny=deny)


def _filled(is_known: NDArray[np.bool_], known: TopK, popular: TopK) -> TopK:
    """Lists [b, k] on the CPU: in order those of known users, and the popular items for the others."""
    values, items = (part.repeat(len(is_known), 1) for part in popular)
    rows = torch.from_numpy(is_known)
    values[rows], items[rows] = known[0].cpu(), known[1].cpu()
    return TopK(values, items)


def _asked(history: NDArray[np.int32], ratings: NDArray[np.float32] | None) -> Queries:
    """One new user with a history."""
    rows = torch.tensor([0, len(history)]), torch.from_numpy(history).long()
    return Queries(history=rows, ratings=None if ratings is None else torch.from_numpy(ratings))


def item_filter(function: str, argument: str, item_ids: Any, items_map: IdMap) -> NDArray[np.int32] | None:
    """Items that may come, or may not, by index; None where none are named."""
    return None if item_ids is None else codes_of(function, argument, item_ids, items_map)


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
    asked = _asked(*rated("predict_for_user", "item_ids", item_ids, ratings, items_map))
    return _all_ratings(model, "item_id", items_map, score_items(model.scorer(model.encode(asked)))[0])


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
    users, given = rated("predict_for_item", "user_ids", user_ids, ratings, users_map)
    order = np.argsort(users)
    predicted = model.rate_new_item(_there(model, users[order]).long(), _there(model, given[order]))
    return _all_ratings(model, "user_id", users_map, predicted)


def _there(model: AnyModel, values: NDArray[Any]) -> Tensor:
    """The values where the model is."""
    return to_device(torch.from_numpy(values), device_of(model))


def rated(
    function: str, argument: str, ids: Any, ratings: Any, known: IdMap
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Internal ids as they were given, with their ratings."""
    codes = codes_of(function, argument, ids, known)
    given = ratings_of(function, ratings, len(codes), known.name)
    if not len(codes):
        raise ValueError(
            f"{function}: {argument} must hold at least one {known.name}, got none; pass one with its rating"
        )
    if (distinct := len(np.unique(codes))) < len(codes):
        raise ValueError(
            f"{function}: each {known.name} may be rated once, got {len(codes)} ratings of {distinct}; keep one"
        )
    return codes, given


def _all_ratings(model: AnyModel, column: str, known: IdMap, ratings: Tensor) -> pl.DataFrame:
    limits: Tensor | None = getattr(model, "limits", None)
    ratings = ratings if limits is None else ratings.clamp(*limits)
    return pl.DataFrame([known.values.alias(column), pl.Series("rating", ratings.cpu().numpy())])


@served
def fold_in(model: AnyModel, history: Tensor) -> tuple[Tensor, ...]:
    """What the model makes of a new user with `history` [n] (item indices), for its `scorer`."""
    state: tuple[Tensor, ...] = model.encode(_asked(history.cpu().int().numpy(), None))
    return state


@served
def similar_items(model: AnyModel, item_ids: Any, k: int = 10) -> pl.DataFrame:
    """The k nearest items to each item by the cosine of the model's item vectors, the item itself left out.

    Returns:
        item_id, rank (from 1), similar_item_id, score in [-1, 1].
    """
    _, items_map = id_maps(model)
    k = min(require_k("similar_items", k), len(items_map))
    codes = codes_of("similar_items", "item_ids", item_ids, items_map)
    vectors = model.item_vectors().float()
    blocks = []
    if len(codes):
        own = torch.arange(len(codes) + 1, device=vectors.device), _there(model, codes)
        blocks.append(topk(CosineScorer(vectors[own[1].long()], vectors), k, seen=own))
    places, ranked = ranked_columns(blocks, k, items_map, "similar_item_id")
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
    result: np.ndarray = scores.cpu().numpy()
    return result


def ranked_columns(
    blocks: Sequence[tuple[Tensor, Tensor]], k: int, items_map: IdMap, column: str
) -> tuple[NDArray[np.int64], list[pl.Series]]:
    """Top-k blocks as long columns without empty places (-1): which list each row is of; rank, `column` and score."""
    scores = np.concatenate([np.empty((0, k), np.float32), *(values.cpu().numpy() for values, _ in blocks)])
    items = np.concatenate([np.empty((0, k), np.int64), *(indices.cpu().numpy() for _, indices in blocks)])
    is_item = items >= 0
    places, ranks = np.nonzero(is_item)
    columns = [
        pl.Series("rank", ranks + 1),
        items_map.values.gather(items[is_item]).alias(column),
        pl.Series("score", scores[is_item].astype(np.float32)),
    ]
    return places, columns


def id_maps(model: AnyModel) -> tuple[IdMap, IdMap]:
    """Users' and items' ids."""
    if model.user_ids is None or model.item_ids is None:
        raise ValueError(f"{model.name}: the model has no id maps; call fit(data) or load one with deeprec.load(dir)")
    return model.user_ids, model.item_ids
