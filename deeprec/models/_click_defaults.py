"""What options of click models become where nobody gave them: rules by the rows, clicks and columns of a log.

The defaults of the config classes are those of the papers, which suit logs of millions of rows. On a small log a batch
of 4096 rows is one or two steps an epoch, and a network of 400-400-400 learns the rows by heart within a few of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deeprec.config import ByData
from deeprec.contract import Facts

_STEPS_AN_EPOCH = 50
_BATCH_SIZES = (64, 4096)
_LEAST_STEPS = 2000
_EPOCHS = (20, 50)
_PATIENT_STEPS = 150
_EVENTS_A_UNIT = 100
_WIDTHS = (64, 256)
_MANY_EVENTS = 20_000
_SCALED = ("adam", "lazy-adam")  # the optimizers for whose steps `lr` is chosen


def _power_of_two(value: float, bounds: tuple[int, int]) -> int:
    """The largest power of two up to `value`, held within bounds that are powers of two too."""
    return 1 << (min(max(int(value), bounds[0]), bounds[1]).bit_length() - 1)


def _steps_an_epoch(facts: Facts, options: Any) -> int:
    """By the batch size, given or chosen."""
    examples: int = options.batch_size * options.accumulate
    return max(1, -(-facts.rows // examples))


def _events(facts: Facts) -> int:
    """Rows of the rarer label: of what is the same in all others nothing can be learnt."""
    return min(facts.positives, facts.rows - facts.positives)


def _batch_size(facts: Facts, options: Any) -> int:
    return _power_of_two(facts.rows / _STEPS_AN_EPOCH, _BATCH_SIZES)


def _epochs(facts: Facts, options: Any) -> int:
    least, most = _EPOCHS
    return min(max(-(-_LEAST_STEPS // _steps_an_epoch(facts, options)), least), most)


def _patience(facts: Facts, options: Any) -> int:
    return max(2, -(-_PATIENT_STEPS // _steps_an_epoch(facts, options)))


def _hidden(facts: Facts, options: Any) -> tuple[int, ...]:
    return (_power_of_two(_events(facts) / _EVENTS_A_UNIT, _WIDTHS),) * 2


def _dropout(facts: Facts, options: Any) -> float:
    return 0.2 if _events(facts) >= _MANY_EVENTS else 0.5


def _adam(lr: Callable[[Facts], float], how: str) -> dict[str, ByData]:
    """Adam, its rate, and the rate's fall where validation stands still, unless another optimizer is given."""

    def rate(facts: Facts, options: Any) -> float:
        return lr(facts) if options.optimizer in _SCALED else float(options.lr)

    return {
        "optimizer": ByData(lambda facts, options: "adam", "adam"),
        "lr": ByData(rate, f"{how} with adam; else that of the class"),
        "lr_schedule": ByData(lambda facts, options: "plateau", "plateau"),
    }


def _ftrl_lr(facts: Facts, options: Any) -> float:
    """A step moves the weights of all columns at once."""
    return min(max(2.0 / max(facts.columns, 1), 0.03), 0.3)


def _lr_of_pairs(facts: Facts) -> float:
    return min(max(0.1 / max(facts.columns, 1), 0.002), 0.01)


def _l2_of_pairs(facts: Facts, options: Any) -> float:
    """A row of the mean loss weighs 1 / batch_size in a step, and L2 beside it as much whatever the batch."""
    return 0.0 if _events(facts) >= _MANY_EVENTS else 0.1 / float(options.batch_size)


def _unless_in_backward(value: Callable[[Facts, Any], float], how: str) -> ByData:
    """`value`, or 0 where the tables are stepped in the backward pass."""
    return ByData(
        lambda facts, options: 0.0 if options.step_in_backward else value(facts, options),
        f"{how}; 0 with step_in_backward",
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
VECTORS = {
    **_adam(_lr_of_pairs, "0.1 / columns, from 0.002 to 0.01"),
    "embedding_l2": _unless_in_backward(_l2_of_pairs, "0.1 / batch_size, 0 from 20,000 rows of the rarer label on"),
}
NETWORK = {
    **_adam(lambda facts: 0.003, "0.003"),
    "embedding_l2": _unless_in_backward(lambda facts, options: 0.03, "0.03"),
    "batch_norm": ByData(lambda facts, options: True, "always"),
}
DEEP = {
    "hidden": ByData(
        _hidden, "two layers of a hundredth of the rows of the rarer label, as a power of two from 64 to 256"
    ),
    "dropout": ByData(_dropout, "0.2 from 20,000 rows of the rarer label on, 0.5 below"),
}
