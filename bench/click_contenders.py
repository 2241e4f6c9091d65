"""Who takes part in the comparison of clicks: how each is trained, and the options that it is tried with.

Every contender trains on a log's train rows, chooses its epoch (round) by the AUC of the validation rows, and returns
its figures of the validation and the test part. A trial is a point of the unit cube, and a contender's space makes
options of it, so that the n-th trial of each has the same place in spaces of the same kind.
"""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from deeprec.data import ClickLog
from deeprec.data.clicks.part import ClickPart
from deeprec.evaluate.click_metrics import click_figures
from deeprec.models import create
from deeprec.train import fit

METRICS = ("auc", "log_loss")
EPOCHS, PATIENCE = 12, 2  # of every network, ours and theirs
ROUNDS, ROUND_PATIENCE = 2000, 50  # of trees
# What a point says, one coordinate each.
DIMENSIONS = ("lr", "batch_size", "embedding_l2", "weight_l2", "factors", "hidden", "dropout", "batch_norm", "schedule")

Point = Mapping[str, float]
Options = dict[str, Any]
Outcome = dict[str, Any]  # "validation" and "test": figures by name; "epoch": the chosen one, or the rounds
Value = TypeVar("Value")


@dataclass(frozen=True)
class Contender:
    """A model of a library.

    Attributes:
        name: on the page.
        side: "deeprec", "deepctr", "lightgbm" or "baseline".
        train: from a log, options and a seed.
        space: options of a point; None for what has none.
        defaults: options of the first trial: the library's own defaults.
    """

    name: str
    side: str
    train: Callable[[ClickLog, Options, int], Outcome]
    space: Callable[[Point], Options] | None
    defaults: Options = field(default_factory=dict)


def point_of(trial: int) -> Point:
    """The point of a trial, the same for every contender and log and whatever the number of trials."""
    return dict(zip(DIMENSIONS, np.random.default_rng([14, trial]).random(len(DIMENSIONS)).tolist(), strict=True))


def _one_of(coordinate: float, *values: Value) -> Value:
    return values[int(coordinate * len(values))]


def _between(coordinate: float, low: float, high: float) -> float:
    """Evenly on the scale of the logarithm, to three digits."""
    return float(f"{low * (high / low) ** coordinate:.3g}")


def _lr(point: Point) -> float:
    return _between(point["lr"], 3e-4, 1e-2)


def _batch_size(point: Point) -> int:
    return _one_of(point["batch_size"], 256, 1024, 4096)


def _factors(point: Point) -> int:
    return _one_of(point["factors"], 4, 8, 16, 32)


def _schedule(point: Point) -> str:
    return _one_of(point["schedule"], "constant", "plateau")


def _network(point: Point) -> Options:
    return {
        "hidden": _one_of(point["hidden"], (64, 64), (128, 128), (256, 128), (400, 400, 400)),
        "dropout": _one_of(point["dropout"], 0.0, 0.2, 0.5),
        "batch_norm": _one_of(point["batch_norm"], False, True),
    }


# -- ours --------------------------------------------------------------------------------------------------------------


def _ours(name: str) -> Callable[[ClickLog, Options, int], Outcome]:
    """A model of ours; options that neither a trial nor the shared rule of stopping gives are chosen by the data."""

    def train(log: ClickLog, options: Options, seed: int) -> Outcome:
        model = create(name, epochs=EPOCHS, patience=PATIENCE, judged_by="headline", **options)
        card = fit(model, log, seed=seed, select="auc", device="cpu", baselines=False).card
        parts = {"validation": card.validation_metrics, "test": card.metrics}
        return {part: _chosen(metrics) for part, metrics in parts.items()} | {"epoch": card.epoch}

    return train


def _fm_space(point: Point) -> Options:
    return {
        "lr": _lr(point),
        "batch_size": _batch_size(point),
        # For the mean loss of a batch; of the rows that it touches.
        "embedding_l2": _one_of(point["embedding_l2"], 0.0, 1e-4, 1e-3, 1e-2, 1e-1),
        "weight_decay": _one_of(point["weight_l2"], 0.0, 1e-7, 1e-6, 1e-5),
        "factors": _factors(point),
        "lr_schedule": _schedule(point),
    }


def _deep_space(point: Point) -> Options:
    return _fm_space(point) | _network(point) | {"numerics": "input"}


def _wide_deep_space(point: Point) -> Options:
    return _deep_space(point) | {"optimizer": "adam", "wide_lr": float(f"{30 * _lr(point):.3g}")}


def _lr_space(point: Point) -> Options:
    return {
        "lr": _between(point["lr"], 0.01, 0.5),
        "batch_size": _batch_size(point),
        "l2": _one_of(point["weight_l2"], 0.0, 1e-6, 1e-5, 1e-4),
        "l1": _one_of(point["embedding_l2"], 0.0, 1e-7, 1e-6, 1e-5, 1e-4),
    }


# -- DeepCTR-Torch -----------------------------------------------------------------------------------------------------

_DEEPCTR_DEFAULTS: Options = {
    "lr": 0.001,
    "batch_size": 256,
    "embedding_l2": 1e-5,
    "linear_l2": 1e-5,
    "network_l2": 0.0,
    "factors": 4,
    "hidden": (256, 128),
    "dropout": 0.0,
    "batch_norm": False,
    "schedule": "constant",
}


def _deepctr_space(point: Point) -> Options:
    weight_l2 = _one_of(point["weight_l2"], 0.0, 1e-5, 1e-3, 1e-2)
    return {
        "lr": _lr(point),
        "batch_size": _batch_size(point),
        # For the sum of the losses of a batch; of all rows.
        "embedding_l2": _one_of(point["embedding_l2"], 0.0, 1e-5, 1e-3, 1e-2, 1e-1),
        "linear_l2": weight_l2,
        "network_l2": weight_l2,
        "factors": _factors(point),
        "schedule": _schedule(point),
        **_network(point),
    }


def _deepctr(kind: str, **fixed: Any) -> Callable[[ClickLog, Options, int], Outcome]:
    """A model of DeepCTR-Torch, trained by its `fit` an epoch at a time with Adam.

    Numbers are fed to the network as they are, bags by padded lists and their means, crosses to the linear part alone,
    as in ours.
    """

    def train(log: ClickLog, options: Options, seed: int) -> Outcome:
        from deepctr_torch import models

        linear, deep = _deepctr_columns(log, options["factors"])
        model = getattr(models, kind)(
            linear,
            deep,
            dnn_hidden_units=options["hidden"],
            dnn_dropout=options["dropout"],
            dnn_use_bn=options["batch_norm"],
            l2_reg_embedding=options["embedding_l2"],
            l2_reg_linear=options["linear_l2"],
            l2_reg_dnn=options["network_l2"],
            seed=seed,
            task="binary",
            device="cpu",
            **fixed,
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=options["lr"])
        model.compile(optimizer, "binary_crossentropy", metrics=[])
        inputs = {name: _deepctr_inputs(log, part) for name, part in log.parts.items()}
        labels = log.parts["train"].labels
        best, best_epoch, state = 0.0, 0, copy.deepcopy(model.state_dict())
        for epoch in range(1, EPOCHS + 1):
            model.fit(inputs["train"], labels, batch_size=options["batch_size"], epochs=1, verbose=0)
            auc = _figures(_logits(model.predict(inputs["validation"], 16384)), log.parts["validation"])["auc"]
            if auc > best:
                best, best_epoch, state = auc, epoch, copy.deepcopy(model.state_dict())
            elif epoch - best_epoch >= PATIENCE:
                break
            elif options["schedule"] == "plateau":
                for group in optimizer.param_groups:
                    group["lr"] /= 10
        model.load_state_dict(state)
        return _outcome(log, lambda name: _logits(model.predict(inputs[name], 16384)), best_epoch)

    return train


def _deepctr_columns(log: ClickLog, factors: int) -> tuple[list[Any], list[Any]]:
    """Columns of the linear part and of the network."""
    from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat

    inputs = log.inputs
    crosses = [SparseFeat(f.name, f.size, embedding_dim=factors) for f in inputs.fields if f.is_cross]
    both: list[Any] = [SparseFeat(f.name, f.size, embedding_dim=factors) for f in inputs.fields if not f.is_cross]
    for bag in inputs.bags:
        ids = SparseFeat(bag.name, bag.size + 1, embedding_dim=factors)  # 0 pads
        both.append(VarLenSparseFeat(ids, _longest(log, bag.name), combiner=bag.pooling))
    both += [DenseFeat(name, 1) for name in inputs.numerics]
    return both + crosses, both


def _longest(log: ClickLog, bag: str) -> int:
    return max(1, *(int(np.diff(part.bags[bag].offsets).max()) for part in log.parts.values()))


def _deepctr_inputs(log: ClickLog, part: ClickPart) -> dict[str, NDArray[Any]]:
    """An array for each column."""
    found: dict[str, NDArray[Any]] = {f.name: part.ids[:, n] for n, f in enumerate(log.inputs.fields)}
    for bag in log.inputs.bags:
        ids, offsets, _ = part.bags[bag.name]
        counts = np.diff(offsets)
        found[bag.name] = np.zeros((len(part), _longest(log, bag.name)), dtype=np.int32)
        rows = np.repeat(np.arange(len(part)), counts)
        found[bag.name][rows, np.arange(len(ids)) - np.repeat(offsets[:-1], counts)] = ids + 1
    return found | {name: part.values[:, n] for n, name in enumerate(log.inputs.numerics)}


# -- LightGBM and what is simpler --------------------------------------------------------------------------------------

_MOST_BAG_COLUMNS = 100


def _lightgbm_space(point: Point) -> Options:
    return {
        "learning_rate": _between(point["lr"], 0.02, 0.2),
        "min_data_in_leaf": _one_of(point["batch_size"], 5, 20, 100),
        "lambda_l2": _one_of(point["embedding_l2"], 0.0, 0.1, 1.0, 10.0, 100.0),
        "cat_l2": _one_of(point["weight_l2"], 1.0, 10.0, 30.0, 100.0),
        "cat_smooth": _one_of(point["factors"], 1.0, 10.0, 30.0, 100.0),
        "num_leaves": _one_of(point["hidden"], 15, 31, 63, 127),
        "feature_fraction": _one_of(point["dropout"], 1.0, 0.8, 0.5),
        "bagging_fraction": _one_of(point["batch_norm"], 1.0, 0.8),
        "min_data_per_group": _one_of(point["schedule"], 100, 20),
    }


def _lightgbm(log: ClickLog, options: Options, seed: int) -> Outcome:
    """Gradient-boosted trees with the ids as categories and a column for each value of a bag; crosses are left out."""
    import lightgbm as library

    kept = [n for n, each in enumerate(log.inputs.fields) if not each.is_cross]

    def columns(part: ClickPart) -> NDArray[np.float32]:
        wide = [part.ids[:, kept].astype(np.float32), part.values]
        for bag in log.inputs.bags:
            if bag.size <= _MOST_BAG_COLUMNS:
                ids, offsets, _ = part.bags[bag.name]
                wide.append(np.zeros((len(part), bag.size), dtype=np.float32))
                wide[-1][np.repeat(np.arange(len(part)), np.diff(offsets)), ids] = 1
        return np.concatenate(wide, axis=1)

    tables = {name: columns(part) for name, part in log.parts.items()}
    train, validation = (
        library.Dataset(tables[name], log.parts[name].labels, categorical_feature=list(range(len(kept))))
        for name in ("train", "validation")
    )
    always = {"objective": "binary", "metric": "auc", "verbose": -1, "num_threads": 1, "bagging_freq": 1, "seed": seed}
    stop = library.early_stopping(ROUND_PATIENCE, verbose=False)
    booster = library.train({**always, **options}, train, ROUNDS, [validation], callbacks=[stop])
    return _outcome(log, lambda name: _logits(booster.predict(tables[name])), booster.best_iteration)


def _constant(log: ClickLog, options: Options, seed: int) -> Outcome:
    """The share of clicks of the train rows."""
    train = log.parts["train"]
    return _outcome(log, lambda name: _logits(np.full(len(log.parts[name]), train.positives / len(train))), None)


def _best_column(log: ClickLog, options: Options, seed: int) -> Outcome:
    """The share of clicks of a value of one column, drawn to that of all as if by ten rows; the best on validation."""
    train = log.parts["train"]
    base = train.positives / len(train)

    def rates(column: int) -> Callable[[str], NDArray[np.float32]]:
        size = log.inputs.fields[column].size
        ids = train.ids[:, column]
        clicks, rows = np.bincount(ids, train.labels, size), np.bincount(ids, minlength=size)
        return lambda name: _logits(((clicks + 10 * base) / (rows + 10))[log.parts[name].ids[:, column]])

    found = [_outcome(log, rates(column), None) for column in range(len(log.inputs.fields))]
    best: Outcome = max(found, key=lambda outcome: outcome["validation"]["auc"])
    return best


# -- figures -----------------------------------------------------------------------------------------------------------


def _logits(probabilities: NDArray[Any]) -> NDArray[np.float32]:
    """log(p / (1 - p)), finite for p of 0 and 1 too."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64).ravel(), 1e-12, 1 - 1e-12)
    logits: NDArray[np.float32] = np.log(p / (1 - p)).astype(np.float32)
    return logits


def _figures(logits: NDArray[np.float32], part: ClickPart) -> dict[str, float]:
    return dict(click_figures(logits, part.labels, None, METRICS))


def _chosen(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: metrics[name] for name in METRICS}


def _outcome(log: ClickLog, logits_of: Callable[[str], NDArray[np.float32]], epoch: int | None) -> Outcome:
    figures = {name: _figures(logits_of(name), log.parts[name]) for name in ("validation", "test")}
    return {**figures, "epoch": epoch}


def timed(contender: Contender, log: ClickLog, options: Options, seed: int) -> Outcome:
    """The outcome with "seconds" of this process's time, whatever else the machine does; libraries keep quiet."""
    torch.set_num_threads(1)
    started = time.process_time()
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        outcome = contender.train(log, options, seed)
    return outcome | {"seconds": round(time.process_time() - started, 2)}


CONTENDERS: dict[str, Contender] = {
    "deepfm": Contender("DeepFM", "deeprec", _ours("deepfm"), _deep_space),
    "wide-deep": Contender("Wide & Deep", "deeprec", _ours("wide-deep"), _wide_deep_space),
    "dcn-v2": Contender("DCN-V2", "deeprec", _ours("dcn-v2"), _deep_space),
    "fm": Contender("FM", "deeprec", _ours("fm"), _fm_space),
    "lr": Contender("LR", "deeprec", _ours("lr"), _lr_space),
    "deepctr-deepfm": Contender("DeepFM", "deepctr", _deepctr("DeepFM"), _deepctr_space, _DEEPCTR_DEFAULTS),
    "deepctr-wdl": Contender("Wide & Deep", "deepctr", _deepctr("WDL"), _deepctr_space, _DEEPCTR_DEFAULTS),
    "deepctr-dcn": Contender(
        "DCN-V2",
        "deepctr",
        _deepctr("DCN", cross_num=3, cross_parameterization="matrix"),
        _deepctr_space,
        _DEEPCTR_DEFAULTS,
    ),
    "lightgbm": Contender("trees", "lightgbm", _lightgbm, _lightgbm_space),
    "best-column": Contender("share of clicks by one column", "baseline", _best_column, None),
    "constant": Contender("share of clicks", "baseline", _constant, None),
}
