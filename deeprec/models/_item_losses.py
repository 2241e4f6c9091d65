"""Losses of states against items: of which one comes next, among all or among draws; no logits are stored."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.sample_negatives import AliasTable, sample_negatives
from deeprec.kernels.sampled_linear_loss import sampled_linear_loss
from deeprec.kernels.softmax_loss import sampled_softmax_loss, softmax_loss
from deeprec.kernels.softmax_loss.reference import unit
from deeprec.kernels.sums import take
from deeprec.nn.scoring import Lists

_APART = 60.0  # e^-60 of a candidate that is there for the form alone


class Targets(NamedTuple):
    """What comes next after each state.

    Attributes:
        items: [T], int64.
        users: [T], int64, whose states these are, rows of `known`.
        known: the training items of each user as sets, offsets int64 and items int32, where the states are.
        seed: of draws for this step.
    """

    items: Tensor
    users: Tensor
    known: Lists
    seed: int


def gbce_beta(calibration: float, num_negatives: int, num_items: int) -> float:
    """beta of gBCE, the power of the positive's probability: a (t (1 - 1 / a) + 1 / a) with a = n / (N - 1).

    Reference: Petrov, Macdonald 2023 (gSASRec, arXiv 2308.07192), eq. 19.
    """
    share = min(1.0, num_negatives / max(1, num_items - 1))
    return share * (calibration * (1 - 1 / share) + 1 / share)


def binary_loss(
    states: Tensor,
    items: Tensor,
    targets: Targets,
    num_negatives: int,
    *,
    beta: float = 1.0,
    bias: Tensor | None = None,
    sparse: bool = True,
) -> Tensor:
    """Mean over states of -(beta log s(z+) + sum of log(1 - s(z-)) over n draws) / (n + 1), s the sigmoid.

    The draws are uniform among the items that are not known. beta log s(z) is the logarithm of s(z)^beta, and
    computed as -beta log(1 + e^-z), which no z makes inexact.

    Args:
        states: [T, D]; items: [N, D].
        num_negatives: n, >= 1.
        beta: 1 for BCE, `gbce_beta` for gBCE.
        bias: [N], added to the scores.
        sparse: whether the gradient of items is.
    """
    count, width = len(targets.items), 1 + num_negatives
    users = targets.users.to(torch.int32)
    drawn = sample_negatives(users, *targets.known, len(items), num_negatives, seed=targets.seed)
    columns = torch.cat([targets.items.to(torch.int32).unsqueeze(1), drawn], 1)
    labels = torch.full(columns.shape, -1.0, dtype=wide_dtype(states.dtype), device=states.device)
    labels[:, 0] = 1.0
    weights = torch.ones_like(labels)
    weights[:, 0] = beta
    indptr = torch.arange(0, count * width + 1, width, dtype=torch.int32, device=states.device)
    loss: Tensor = sampled_linear_loss(
        states,
        items,
        bias,
        indptr,
        columns.flatten(),
        labels.flatten(),
        entry_weights=weights.flatten(),
        loss="logistic",
        sparse_grad=sparse,
    )[0]
    return loss / max(1, count * width)


def full_loss(states: Tensor, items: Tensor, targets: Targets, mask_known: bool, **options: Any) -> Tensor:
    """Mean of -log softmax of the targets over all items.

    Args:
        mask_known: whether the other known items of the user are left out of the denominator.
        **options: similarity, gamma and bias of `softmax_loss`.
    """
    loss: Tensor = softmax_loss(states, items, targets.items, **(_seen(targets) if mask_known else {}), **options)
    return loss


def sampled_loss(
    states: Tensor,
    items: Tensor,
    targets: Targets,
    num_negatives: int,
    *,
    mask_known: bool,
    log_q: bool,
    popularity: AliasTable | None = None,
    sparse: bool = True,
    **options: Any,
) -> Tensor:
    """Mean of -log softmax of the targets among themselves and draws of each state's own; see `sampled_softmax_loss`.

    Args:
        options: similarity, gamma and bias.
    """
    loss: Tensor = sampled_softmax_loss(
        states,
        items,
        targets.items,
        num_negatives,
        seed=targets.seed,
        popularity=popularity,
        use_log_q=log_q,
        sparse_grad=sparse,
        **(_seen(targets) if mask_known else {}),
        **options,
    )
    return loss


def shared_loss(
    states: Tensor,
    items: Tensor,
    targets: Targets,
    num_negatives: int,
    *,
    mask_known: bool,
    log_q: Tensor | None,
    popularity: AliasTable | None = None,
    bias: Tensor | None = None,
    similarity: str = "dot",
    gamma: float = 1.0,
) -> Tensor:
    """Mean of -log softmax of the targets among themselves and draws that all states share.

        loss[t] = log(exp z[t, target] + sum over draws j of exp(z[t, j] - log_q[j])) - z[t, target]

    Draws of the target itself are left out.

    Args:
        states: [T, D]; items: [N, D].
        num_negatives: draws, >= 1.
        mask_known: whether draws that the user knows are left out.
        log_q: [N], logarithm of the expected number of draws of each item; None: no correction.
        bias: [N], added to the logits.
    """
    device = states.device
    nobody = torch.zeros(1, dtype=torch.int64, device=device)
    nothing = (torch.zeros(2, dtype=torch.int64, device=device), torch.zeros(0, dtype=torch.int32, device=device))
    draws = sample_negatives(
        nobody, *nothing, len(items), num_negatives, seed=targets.seed, popularity=popularity
    ).squeeze(0)
    # The positive stands apart: a candidate of zeros with a logit of -60 takes its place, and is subtracted again.
    candidates = torch.cat([items.new_zeros(1, items.shape[1]), take(items, 0, draws)])
    ids = torch.cat([draws.new_full((1,), len(items)), draws])
    shift = states.new_zeros(num_negatives) if log_q is None else log_q[draws]
    own: dict[str, Any] = {
        "seen_indptr": torch.arange(len(states) + 1, device=device),
        "seen_indices": targets.items.to(torch.int32),
    }
    over_draws = softmax_loss(
        states,
        candidates,
        torch.zeros_like(targets.items),
        bias=None if bias is None else torch.cat([bias.new_zeros(1), take(bias, 0, draws)]),
        log_q=torch.cat([shift.new_full((1,), _APART), shift]),
        item_ids=ids,
        similarity=similarity,
        gamma=gamma,
        correct_positive=True,
        reduction="none",
        **(_seen(targets) if mask_known else own),
    )
    positives = take(items, 0, targets.items)
    if similarity == "cosine":
        states, positives = unit(states), unit(positives)
    own_logits = gamma * (states * positives).sum(1)
    if bias is not None:
        own_logits = own_logits + take(bias, 0, targets.items)
    return F.softplus(over_draws - _APART - own_logits).mean()


def _seen(targets: Targets) -> dict[str, Any]:
    """The lists of known items, as the softmax losses take them; the target is among them, and is never left out."""
    return {"seen_indptr": targets.known[0], "seen_indices": targets.known[1], "seen_rows": targets.users}
