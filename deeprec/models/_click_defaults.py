"""What options of click models become where nobody gave them: rules by the rows and columns of a log.

The defaults of the config classes are those of the papers, which suit logs of millions of rows. On a small log a batch
of 4096 rows is one or two steps an epoch, and a network of 400-400-400 learns the rows by heart within a few of them.
"""

from __future__ import annotations

from typing import Any

from deeprec.config import ByData
from deeprec.contract import Facts

_STEPS_AN_EPOCH = 50
_BATCH_SIZES = (64, 4096)
_LEAST_STEPS = 2000
_EPOCHS = (20, 50)
_PATIENT_STEPS = 150
_ROWS_A_UNIT = 100
_WIDTHS = (64, 256)
_SCALED = ("adam", "lazy-adam")  # the optimizers for whose steps `lr` is chosen


def _power_of_two(value: float, bounds: tuple[int, int]) -> int:
    """The largest power of two up to `value`, held within bounds that are powers of two too."""
    return 1 << (min(max(int(value), bounds[0]), bounds[1]).bit_length() - 1)


def _steps_an_epoch(facts: Facts, options: Any) -> int:
    """By the batch size, given or chosen."""
    examples: int = options.batch_size * options.accumulate
    return max(1, -(-facts.rows // examples))


def _batch_size(facts: Facts, options: Any) -> int:
    return _power_of_two(facts.rows / _STEPS_AN_EPOCH, _BATCH_SIZES)


def _epochs(facts: Facts, options: Any) -> int:
    least, most = _EPOCHS
    return min(max(-(-_LEAST_STEPS // _steps_an_epoch(facts, options)), least), most)


def _patience(facts: Facts, options: Any) -> int:
    return max(2, -(-_PATIENT_STEPS // _steps_an_epoch(facts, options)))


def _hidden(facts: Facts, options: Any) -> tuple[int, ...]:
    return (_power_of_two(facts.rows / _ROWS_A_UNIT, _WIDTHS),) * 2


def _lr(facts: Facts, options: Any) -> float:
    return 0.002 if options.optimizer in _SCALED else float(options.lr)


def _ftrl_lr(facts: Facts, options: Any) -> float:
    """A step moves the weights of all columns at once."""
    return min(max(2.0 / max(facts.columns, 1), 0.03), 0.3)


def _unless_in_backward(value: float) -> ByData:
    """A constant, or 0 where the tables are stepped in the backward pass."""
    return ByData(
        lambda facts, options: 0.0 if options.step_in_backward else value, f"{value}; 0 with step_in_backward"
    )


_FTRL_RULE = "2 / columns, from 0.03 to 0.3"
STEPS = {
    "batch_size": ByData(_batch_size, "a fiftieth of the rows, as a power of two from 64 to 4096"),
    "epochs": ByData(_epochs, "2000 steps, 20 to 50 epochs; patience ends them earlier"),
    "patience": ByData(_patience, "150 steps, 2 epochs at least"),
}
LINEAR_LR = ByData(
    lambda facts, options: _ftrl_lr(facts, options) if options.optimizer == "ftrl" else float(options.lr),
    f"{_FTRL_RULE} with ftrl; else that of the class",
)
WIDE_LR = ByData(
    lambda facts, options: _ftrl_lr(facts, options) if options.wide_optimizer == "ftrl" else float(options.wide_lr),
    f"{_FTRL_RULE} with ftrl; else that of the class",
)
FIRST_ORDER_LR = ByData(
    lambda facts, options: 0.0 if options.step_in_backward else _ftrl_lr(facts, options),
    f"{_FTRL_RULE}; 0 with step_in_backward",
)
ADAM = {
    "optimizer": ByData(lambda facts, options: "adam", "adam"),
    "lr": ByData(_lr, "0.002 with adam; else that of the class"),
}
VECTORS = {**ADAM, "embedding_l2": _unless_in_backward(0.01)}
NETWORK = {
    **ADAM,
    "embedding_l2": _unless_in_backward(0.03),
    "batch_norm": ByData(lambda facts, options: True, "always"),
}
WIDTHS = {"hidden": ByData(_hidden, "two layers of a hundredth of the rows, as a power of two from 64 to 256")}
