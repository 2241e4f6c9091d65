"""Fused in-place updates of the rows that a coalesced gradient touches: SGD, Adagrad, row-wise Adagrad,
Adam, FTRL-proximal.

In every function `weight` is [R, D], contiguous, float32, float64, bfloat16 or float16; `rows` [U] are strictly
ascending, int32 or int64; `grads` [U, D] have the dtype of weight; states are float32 (float64 for a float64 weight).
`weight_decay` is L2: weight_decay * weight is added to the gradient of the touched rows. A `rounding_seed` >= 0 rounds
bfloat16 weights stochastically, so that updates below half a unit in the last place are not lost; the random bits are a
function of the seed, the row and the column, so give each step a seed of its own (`reference.rounding_seed`). Each row
is written by one thread: results do not depend on the number of threads.

Learning rates are finite (FTRL's > 0), momentum and weight_decay finite and >= 0, eps finite and > 0, betas in [0, 1),
steps in [1, 2^31). Wrong arguments raise RuntimeError before anything is changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deeprec.kernels import _library
from deeprec.kernels.sparse_update import reference

__all__ = [
    "adagrad_update_",
    "adam_catch_up_",
    "adam_catch_up_tables_",
    "adam_dense_update_",
    "adam_dense_update_tables_",
    "adam_update_",
    "ftrl_update_",
    "rowwise_adagrad_update_",
    "sgd_update_",
]


def _nothing(*args: object) -> None:
    return None


_ADAM = "float beta1, float beta2, float eps, float weight_decay"
_MOMENTS = "Tensor(a!) weight, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq"
_library.define(
    "sgd_update_(Tensor(a!) weight, Tensor(b!)? momentum_buffer, Tensor rows, Tensor grads, float lr, float momentum, "
    "float weight_decay, int rounding_seed=-1) -> ()",
    reference.of_one_dtype("sgd_update_", 3, reference.sgd_update_reference),
    _nothing,
)
_library.define(
    "adagrad_update_(Tensor(a!) weight, Tensor(b!) sum, Tensor rows, Tensor grads, float lr, float eps, "
    "float weight_decay, int rounding_seed=-1) -> ()",
    reference.of_one_dtype("adagrad_update_", 3, reference.adagrad_update_reference),
    _nothing,
)
_library.define(
    "rowwise_adagrad_update_(Tensor(a!) weight, Tensor(b!) sum, Tensor rows, Tensor grads, float lr, float eps, "
    "float weight_decay, int rounding_seed=-1) -> ()",
    reference.of_one_dtype("rowwise_adagrad_update_", 3, reference.rowwise_adagrad_update_reference),
    _nothing,
)
_library.define(
    f"adam_update_({_MOMENTS}, Tensor rows, Tensor grads, int step, float lr, {_ADAM}, int rounding_seed=-1) -> ()",
    reference.of_one_dtype("adam_update_", 4, reference.adam_update_reference),
    _nothing,
)
_library.define(
    f"adam_catch_up_({_MOMENTS}, Tensor(d!) last_step, Tensor? rows, Tensor lr_history, int history_start, int step, "
    f"{_ADAM}) -> ()",
    reference.adam_catch_up_reference,
    _nothing,
)
_library.define(
    f"adam_dense_update_({_MOMENTS}, Tensor(d!) last_step, Tensor rows, Tensor grads, Tensor lr_history, "
    f"int history_start, int step, {_ADAM}) -> ()",
    reference.of_one_dtype("adam_dense_update_", 5, reference.adam_dense_update_reference),
    _nothing,
)
_TABLES = (
    "Tensor(a!)[] weights, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] last_steps, Tensor[] rows"
)
_HISTORY = f"Tensor lr_history, int history_start, int step, {_ADAM}"
_library.define(
    f"adam_catch_up_tables_({_TABLES}, {_HISTORY}) -> ()", reference.adam_catch_up_tables_reference, _nothing
)
_library.define(
    f"adam_dense_update_tables_({_TABLES}, Tensor[] grads, {_HISTORY}) -> ()",
    reference.of_one_dtype("adam_dense_update_tables_", 5, reference.adam_dense_update_tables_reference),
    _nothing,
)
_library.define(
    "ftrl_update_(Tensor(a!) weight, Tensor(b!) sum, Tensor(c!) linear, Tensor rows, Tensor grads, float lr, float l1, "
    "float l2, float beta, int rounding_seed=-1) -> ()",
    reference.of_one_dtype("ftrl_update_", 4, reference.ftrl_update_reference),
    _nothing,
)
_library.implement_triton("sparse_update", tuple(name for name in __all__ if name != "adam_catch_up_tables_"))


def sgd_update_(
    weight: Tensor,
    momentum_buffer: Tensor | None,
    rows: Tensor,
    grads: Tensor,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    rounding_seed: int = -1,
) -> None:
    """buffer <- momentum buffer + g; w <- w - lr buffer, on the touched rows only.

    Args:
        momentum_buffer: [R, D], or None for plain SGD; the buffers of untouched rows stand still.
    """
    torch.ops.deeprec.sgd_update_(weight, momentum_buffer, rows, grads, lr, momentum, weight_decay, rounding_seed)


def adagrad_update_(
    weight: Tensor,
    sum: Tensor,
    rows: Tensor,
    grads: Tensor,
    lr: float,
    eps: float,
    weight_decay: float = 0.0,
    rounding_seed: int = -1,
) -> None:
    """sum <- sum + g^2; w <- w - lr g / (sqrt(sum) + eps).

    Args:
        sum: sums of squared gradients, [R, D].
    Reference: Duchi, Hazan, Singer 2011, JMLR 12.
    """
    torch.ops.deeprec.adagrad_update_(weight, sum, rows, grads, lr, eps, weight_decay, rounding_seed)


def rowwise_adagrad_update_(
    weight: Tensor,
    sum: Tensor,
    rows: Tensor,
    grads: Tensor,
    lr: float,
    eps: float,
    weight_decay: float = 0.0,
    rounding_seed: int = -1,
) -> None:
    """sum <- sum + mean_d g_d^2, one number a row; w <- w - lr g / (sqrt(sum) + eps).

    Args:
        sum: [R].
    """
    torch.ops.deeprec.rowwise_adagrad_update_(weight, sum, rows, grads, lr, eps, weight_decay, rounding_seed)


def adam_update_(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    grads: Tensor,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    rounding_seed: int = -1,
) -> None:
    """Lazy Adam: step number `step` on the touched rows; the moments of the others stand still.

    Args:
        exp_avg, exp_avg_sq: first and second moments, [R, D].
        step: number of this step, >= 1, for the bias correction.
    Reference: Kingma, Ba 2015 (arXiv 1412.6980), algorithm 1. torch.optim.SparseAdam differs in that its eps is not
        bias-corrected.
    """
    rule = (step, lr, beta1, beta2, eps, weight_decay, rounding_seed)
    torch.ops.deeprec.adam_update_(weight, exp_avg, exp_avg_sq, rows, grads, *rule)


def ftrl_update_(
    weight: Tensor,
    sum: Tensor,
    linear: Tensor,
    rows: Tensor,
    grads: Tensor,
    lr: float,
    l1: float = 0.0,
    l2: float = 0.0,
    beta: float = 1.0,
    rounding_seed: int = -1,
) -> None:
    """FTRL-proximal with a learning rate of each weight's own; the old weight is used, the new one written anew.

        sigma = (sqrt(sum + g^2) - sqrt(sum)) / lr;  linear <- linear + g - sigma w;  sum <- sum + g^2
        w <- 0 where |linear| <= l1, else -(linear - sign(linear) l1) / ((beta + sqrt(sum)) / lr + l2)

    Args:
        sum: sums of squared gradients (the paper's n), [R, D], >= 0; zeros at the start.
        linear: the paper's z, [R, D]; not read where sum is 0: such a weight had no gradient so far, and its z is the
            one that gives this weight, 0 for w = 0 (where the paper starts). Zero gradients leave it as it is.
        lr: alpha of the paper, > 0; the rule expects the same one at every step.
        l1, l2, beta: >= 0.
    Reference: McMahan et al. 2013, Ad Click Prediction: a View from the Trenches, algorithm 1.
    """
    torch.ops.deeprec.ftrl_update_(weight, sum, linear, rows, grads, lr, l1, l2, beta, rounding_seed)


def adam_catch_up_(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    last_step: Tensor,
    rows: Tensor | None,
    lr_history: Tensor,
    history_start: int,
    step: int,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """Bring rows to step `step` of dense Adam by replaying the steps in which they had no gradient.

    Without weight decay the steps collapse into one: with zero gradients the moments only decay, and the sum of the
    moves is evaluated by its first three moments (csrc/cpu/sparse_update_adam_dense.cpp); to about 1e-6 of the move.

    Args:
        exp_avg, exp_avg_sq: [R, D].
        last_step: the step each row has reached, [R], int32; 0 before its first gradient.
        rows: any rows, repeated ones too, int32 or int64; None for all.
        lr_history: float64; entry t - 1 - history_start is the learning rate of step t, up to `step`.
        history_start: no row but those without a gradient so far is behind this step.
        step: steps completed, >= history_start.
    """
    replay, rule = (lr_history, history_start, step), (beta1, beta2, eps, weight_decay)
    torch.ops.deeprec.adam_catch_up_(weight, exp_avg, exp_avg_sq, last_step, rows, *replay, *rule)


def adam_dense_update_(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    last_step: Tensor,
    rows: Tensor,
    grads: Tensor,
    lr_history: Tensor,
    history_start: int,
    step: int,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """Step `step` of dense Adam on the touched rows, after `adam_catch_up_` to step - 1.

    With every row caught up at the end, weights and moments are those of torch.optim.Adam on the dense gradient.
    Arguments as in `adam_catch_up_`, except that `rows` are strictly ascending, and lr_history reaches `step`.
    """
    replay, rule = (lr_history, history_start, step), (beta1, beta2, eps, weight_decay)
    torch.ops.deeprec.adam_dense_update_(weight, exp_avg, exp_avg_sq, last_step, rows, grads, *replay, *rule)


def adam_catch_up_tables_(
    weights: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    last_steps: Sequence[Tensor],
    rows: Sequence[Tensor],
    lr_history: Tensor,
    history_start: int,
    step: int,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """`adam_catch_up_` on several tables of one dtype that had the same steps, in one call.

    Arguments as there, a tensor of each table; `rows` strictly ascending. Tables that share their rows should be given
    the same tensor of them.
    """
    tables = (weights, exp_avgs, exp_avg_sqs, last_steps, rows)
    replay, rule = (lr_history, history_start, step), (beta1, beta2, eps, weight_decay)
    torch.ops.deeprec.adam_catch_up_tables_(*tables, *replay, *rule)


def adam_dense_update_tables_(
    weights: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    last_steps: Sequence[Tensor],
    rows: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr_history: Tensor,
    history_start: int,
    step: int,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """`adam_dense_update_` on several tables of one dtype that had the same steps, in one call.

    Arguments as there, a tensor of each table.
    """
    tables = (weights, exp_avgs, exp_avg_sqs, last_steps, rows, grads)
    replay, rule = (lr_history, history_start, step), (beta1, beta2, eps, weight_decay)
    torch.ops.deeprec.adam_dense_update_tables_(*tables, *replay, *rule)
