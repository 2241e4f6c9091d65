"""DeepFM of DeepCTR-Torch 0.3.0, trained by its own `fit`: the rival in `bench/deepfm.py`; prints JSON.

    python bench/peers/deepctr_deepfm.py --rows 1000 [--as-in-readme]

`pip install --no-deps deepctr-torch==0.3.0` beside torch, tqdm and scikit-learn. Without --as-in-readme it has no L2
and computes no metrics, so that it does what the others do; with it, it has its defaults and its README's metrics.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from click_rows import FIELDS, NUMERICS, Rows, Weights, add_arguments, log_loss, of_arguments


def build(args: argparse.Namespace, weights: Weights) -> Any:
    """The model with the given first weights, compiled."""
    from deepctr_torch.inputs import DenseFeat, SparseFeat
    from deepctr_torch.models import DeepFM

    columns = [SparseFeat(f"C{f}", args.rows, embedding_dim=args.dim) for f in range(FIELDS)]
    columns += [DenseFeat(f"I{p}", 1) for p in range(NUMERICS)]
    l2 = {} if args.as_in_readme else {"l2_reg_linear": 0.0, "l2_reg_embedding": 0.0}
    model = DeepFM(columns, columns, dnn_hidden_units=tuple(args.hidden), task="binary", device="cpu", **l2)
    pairs = []
    for field in range(FIELDS):
        pairs.append((model.embedding_dict[f"C{field}"].weight, weights.tables[field]))
        pairs.append((model.linear_model.embedding_dict[f"C{field}"].weight, weights.linear[field][:, None]))
    for layer, (weight, bias) in zip(model.dnn.linears, weights.layers, strict=True):
        pairs += [(layer.weight, weight), (layer.bias, bias)]
    pairs += [(model.linear_model.weight, weights.numerics[:, None]), (model.dnn_linear.weight, weights.output)]
    with torch.no_grad():
        for parameter, array in pairs:
            assert parameter.shape == array.shape
            parameter.copy_(torch.from_numpy(array))
        model.out.bias.zero_()
    metrics = ["binary_crossentropy", "auc"] if args.as_in_readme else None
    model.compile(torch.optim.Adam(model.parameters(), lr=args.lr), "binary_crossentropy", metrics=metrics)
    return model


def inputs_of(rows: Rows) -> dict[str, Any]:
    """A column for each feature, as its users give them."""
    ids = {f"C{f}": rows.ids[:, f] for f in range(FIELDS)}
    return ids | {f"I{p}": rows.values[:, p] for p in range(NUMERICS)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, required=True, help="of each field")
    parser.add_argument("--as-in-readme", action="store_true")
    add_arguments(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train, weights = of_arguments(args, args.rows)
    with contextlib.redirect_stdout(sys.stderr):
        model = build(args, weights)
        from deepctr_torch.callbacks import Callback

        seconds: list[float] = []

        class Clock(Callback):  # type: ignore[misc]
            """Wall-clock seconds of each epoch."""

            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                self.started = time.perf_counter()

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                seconds.append(time.perf_counter() - self.started)

        first = Rows(*(array[: args.batch] for array in train))
        first_loss = log_loss(model.predict(inputs_of(first), args.batch).ravel(), first.labels)
        verbose = 2 if args.as_in_readme else 0
        history = model.fit(
            inputs_of(train),
            train.labels,
            batch_size=args.batch,
            epochs=args.epochs,
            verbose=verbose,
            callbacks=[Clock()],
        )
    report = {
        "version": version("deepctr-torch"),
        "first_loss": first_loss,
        "seconds_per_epoch": seconds,
        "loss": [float(np.asarray(value)) for value in history.history["loss"]],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
