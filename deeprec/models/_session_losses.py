"""Losses of GRU4Rec over the scores of one step: each row's own target against the other candidates of the step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

PAIRWISE_LOSSES = ("top1", "bpr", "top1-max", "bpr-max")
SESSION_LOSSES = ("cross-entropy", *PAIRWISE_LOSSES)


class PairwiseOptions(NamedTuple):
    """Attributes:
    loss: one of PAIRWISE_LOSSES.
    bpreg: weight of the squared negative scores in BPR-max, >= 0.
    elu: scores r < 0 become elu (exp r - 1) in BPR-max, > 0; 0 leaves them as they are.
    """

    loss: str
    bpreg: float
    elu: float


def pairwise_losses(scores: Tensor, is_negative: Tensor, options: PairwiseOptions) -> Tensor:
    """Losses [m] of rows b whose target is candidate b.

    With r_i the target's score, r_j that of a negative, n their number and s = softmax of r over the negatives alone:

        top1      1/n sum_j sigma(r_j - r_i) + sigma(r_j^2)
        bpr       1/n sum_j -log sigma(r_i - r_j)
        top1-max  sum_j s_j (sigma(r_j - r_i) + sigma(r_j^2))
        bpr-max   -log sum_j s_j sigma(r_i - r_j) + bpreg sum_j s_j r_j^2

    A row without negatives has loss 0 and no gradient.

    Args:
        scores: [m, c], c >= m.
        is_negative: [m, c], bool.
    Reference: Hidasi et al. 2016 (arXiv 1511.06939), section 3.1.3; Hidasi & Karatzoglou 2018 (arXiv 1706.03847).
    """
    if options.loss == "bpr-max" and options.elu > 0:
        scores = F.elu(scores, options.elu)
    targets = scores.diagonal().unsqueeze(1)
    counts = is_negative.sum(1)
    has_any = counts > 0
    is_negative = is_negative | ~has_any.unsqueeze(1)  # so that nothing below becomes NaN; left out at the end
    if options.loss.endswith("-max"):
        log_shares = scores.masked_fill(~is_negative, -torch.inf).log_softmax(1)
        shares = log_shares.exp()
    else:
        shares = is_negative / is_negative.sum(1, keepdim=True)
    if options.loss.startswith("top1"):
        losses = (shares * ((scores - targets).sigmoid() + scores.square().sigmoid())).sum(1)
    elif options.loss == "bpr":
        losses = -(shares * F.logsigmoid(targets - scores)).sum(1)
    else:
        losses = -(log_shares + F.logsigmoid(targets - scores)).logsumexp(1)
        losses = losses + options.bpreg * (shares * scores.square()).sum(1)
    return torch.where(has_any, losses, 0.0)
