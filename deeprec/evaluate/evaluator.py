"""evaluate(): the figures of a model under a protocol, as one flat dict."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deeprec.contract import RATES, Scorable
from deeprec.device import Device, device_of, placed, to_device
from deeprec.evaluate import metrics
from deeprec.evaluate.events import negatives_of, rank_events
from deeprec.evaluate.histories import HistoryScorer, histories_before
from deeprec.evaluate.protocols import Protocol
from deeprec.evaluate.ranking import Progress, Ranking, Scorer, candidate_ranks, full_ranks
from deeprec.registry import with_capabilities

if TYPE_CHECKING:
    from deeprec.data import Interactions, Split

Part = Literal["validation", "test"]


def evaluate(
    model: Scorer,
    split: Split,
    protocol: Protocol,
    part: Part = "test",
    *,
    users: NDArray[Any] | None = None,
    progress: Progress | None = None,
    device: Device = "auto",
) -> dict[str, float]:
    """Figures of `model` on one part of a split.

    Args:
        model: anything with `score_pairs` and `score_items` (see `Scorer`); an nn.Module is put into eval mode
            meanwhile. One whose `reads_history` is True is asked for next items through `encode` and `scorer`, with the
            ordered histories before the part; with targets="events" so is one that knows new users by a set.
        split: what `protocol.split(data)` returned.
        protocol: candidates, mask, tie rule, metrics and cutoffs.
        part: "validation" or "test". The test part is for the end: choosing anything on it inflates the figure.
        users: internal ids of the users to evaluate, or None for all of the part.
        progress: called with (done, total) after each block.
        device: where the model is moved for this call, and with it the work; "auto": where it is.
    Returns:
        "metric@k" (or its name alone without a cutoff) to its mean over users, in the order of the protocol; where
        users were held out, then "new_metric@k", over those who are new, if there are any.
    Raises:
        ValueError: a score is NaN, the part is empty, negatives are missing, or there is no such device.
    """
    with placed(model, device, "evaluate"):
        if protocol.task == "rating":
            return rating_figures(model, split, protocol, part)
        ranking = rank(model, split, protocol, part, users=users, progress=progress)
    if ranking.users.size == 0:
        raise ValueError(
            f"evaluate: the {part} part must have a user to evaluate, got none; check the split or `users`"
        )
    if protocol.holdout != "users":
        return figures(ranking, protocol, split.train)
    from deeprec.data.interactions.new_users import is_new  # here, so that importing this brings torch and numpy only

    new = ranking.taken(is_new(split.train, ranking.users, protocol.domain))
    of_new = figures(new, protocol, split.train) if len(new.users) else {}
    return figures(ranking, protocol, split.train) | {f"new_{name}": value for name, value in of_new.items()}


def rank(
    model: Scorer,
    split: Split,
    protocol: Protocol,
    part: Part = "test",
    *,
    users: NDArray[Any] | None = None,
    progress: Progress | None = None,
) -> Ranking:
    """Ranks behind `evaluate`, for figures of single users or significance tests; same arguments."""
    if part not in ("validation", "test"):
        raise ValueError(f"evaluate: part must be 'validation' or 'test', got {part!r}")
    held_out = split.validation if part == "validation" else split.test
    wants_lists = any(name in metrics.LIST_METRICS for name in protocol.metrics)
    top = max(protocol.cutoffs) if wants_lists else 0
    device = ids_on = device_of(model)
    scorer: Scorer = model
    if protocol.targets == "events":
        with _evaluating(model):
            return rank_events(model, split, protocol, part, users=users, top=top, device=device, progress=progress)
    if protocol.task == "next-item" and getattr(model, "reads_history", False):
        # Histories are cut out on the CPU, where their lengths are known without waiting.
        scorer = HistoryScorer(cast(Scorable, model), histories_before(split, part), device)
        ids_on = torch.device("cpu")
    with _evaluating(model):
        if protocol.candidates in ("all", "part"):
            return full_ranks(
                scorer,
                held_out,
                [getattr(split, name) for name in protocol.mask if name != part],
                only_its_items=protocol.candidates == "part",
                users=users,
                top=top,
                device=device,
                ids_on=ids_on,
                progress=progress,
            )
        negatives = negatives_of(split, protocol, part)
        rows = slice(None) if users is None else np.flatnonzero(np.isin(held_out.users, users))
        return candidate_ranks(
            scorer,
            held_out.users[rows],
            held_out.items[rows],
            negatives[rows],
            ties=protocol.ties,
            top=top,
            device=ids_on,
            progress=progress,
        )


def figures(ranking: Ranking, protocol: Protocol, train: Interactions) -> dict[str, float]:
    """The protocol's metrics from ranks that are already there; `train` gives popularity and the catalogue size."""
    result: dict[str, float] = {}
    item_counts: NDArray[Any] | None = None
    for name in protocol.metrics:
        if name == "auc":
            values = metrics.auc(ranking.ranks, ranking.num_candidates, ranking.offsets)
            known = values[~np.isnan(values)]
            result["auc"] = float(known.mean()) if known.size else float("nan")
            continue
        if name in metrics.WHOLE_METRICS:
            result[name] = float(np.mean(metrics.WHOLE_METRICS[name](ranking.ranks, ranking.offsets)))
            continue
        for k in protocol.cutoffs:
            if name in metrics.RANK_METRICS:
                value = float(metrics.RANK_METRICS[name](ranking.ranks, k, ranking.offsets).mean())
            elif name == "f1":
                value = metrics.f1(ranking.ranks, k, ranking.offsets)
            else:
                assert ranking.top_items is not None  # rank() asks for lists where the protocol has a list metric
                if name == "novelty":
                    item_counts = train.item_counts() if item_counts is None else item_counts
                    value = metrics.novelty(ranking.top_items, k, item_counts, train.num_users)
                else:
                    metric = metrics.coverage if name == "coverage" else metrics.gini
                    value = metric(ranking.top_items, k, train.num_items)
            result[f"{name}@{k}"] = value
    return result


def require_ratings(model: Any, protocol: Protocol) -> None:
    """Raise ValueError for a model that predicts no ratings under a protocol that measures them."""
    capabilities = getattr(model, "capabilities", None)
    rates = hasattr(model, "predict_ratings") if capabilities is None else RATES in capabilities
    if protocol.task == "rating" and not rates:
        able, name = ", ".join(with_capabilities(RATES)), getattr(model, "name", type(model).__name__)
        raise ValueError(
            f"evaluate: the protocol {protocol.name!r} needs a model that predicts ratings, got {name}; take {able} "
            "or a ranking protocol such as full"
        )


def rating_figures(model: Any, split: Split, protocol: Protocol, part: Part) -> dict[str, float]:
    """Errors of `model.predict_ratings(users, items)` on the ratings of one part.

    Unless the protocol has a `default_rating`, they are those of what the model serves: its own rating of users and
    items without a training rating too, and with `clamp` within its limits, as `deeprec predict` writes them.

    Raises:
        ValueError: the model predicts no ratings, the data has none, or a prediction is NaN.
    """
    held_out, train = (split.validation if part == "validation" else split.test), split.train
    require_ratings(model, protocol)
    if held_out.ratings is None or train.ratings is None or not len(held_out):
        raise ValueError(f"evaluate: the {part} part must have ratings, got none in {train.name}")
    with _evaluating(model):
        device, columns = device_of(model), (held_out.users, held_out.items)
        users, items = (to_device(torch.from_numpy(np.ascontiguousarray(c)), device) for c in columns)
        predictions: NDArray[Any] = model.predict_ratings(users, items).double().cpu().numpy()
    if np.isnan(predictions).any():
        at = int(np.flatnonzero(np.isnan(predictions))[0])
        raise ValueError(f"evaluate: predictions must be numbers, got NaN at row {at} of the {part} part")
    if protocol.default_rating is not None:
        is_known = (train.user_counts()[held_out.users] > 0) & (train.item_counts()[held_out.items] > 0)
        predictions = np.where(is_known, predictions, protocol.default_rating)
    if protocol.clamp:
        limits = getattr(model, "limits", None)
        low, high = (train.ratings.min(), train.ratings.max()) if limits is None else limits.tolist()
        predictions = predictions.clip(low, high)
    places = {"rmse_rare": (held_out.items, train.item_counts())}
    return {
        name: getattr(metrics, name)(predictions, held_out.ratings, *places.get(name, ())) for name in protocol.metrics
    }


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """No gradients, dropout off; each submodule's own mode comes back afterwards."""
    modes = [(module, module.training) for module in model.modules()] if isinstance(model, nn.Module) else []
    if isinstance(model, nn.Module):
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
