"""What other libraries reach on the rows of a click log: DeepCTR-Torch's models and LightGBM; results/SET/peers.json.

    python -m bench.click_peers frappe criteo-10k [--seeds 1 2 3] [--only deepfm] [--data-dir DIR]

The rows, the features and the parts are those of `load_clicks`. DeepCTR-Torch's models have our recipes' sizes,
dropout, batch size and Adam, and its own initial weights and default L2; the epoch with the best validation AUC counts,
as with ours. Bags are left out: DeepCTR-Torch takes padded lists of fixed length only, LightGBM none. `make bench`
installs both.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deeprec.data import ClickLog, load_clicks
from deeprec.data.clicks.part import ClickPart
from deeprec.evaluate.click_metrics import click_figures

ROOT = Path(__file__).resolve().parent.parent / "results"
SETTINGS: dict[str, dict[str, Any]] = {
    "frappe": {"factors": 10, "hidden": (400, 400, 400), "dropout": 0.2, "batch_norm": True, "batch_size": 4096},
    "criteo-10k": {"factors": 10, "hidden": (400, 400, 400), "dropout": 0.5, "batch_norm": False, "batch_size": 256},
    "criteo-mini": {"factors": 10, "hidden": (400, 400, 400), "dropout": 0.5, "batch_norm": False, "batch_size": 256},
}
METRICS = ("auc", "log_loss", "ece", "accuracy")
EPOCHS, PATIENCE, LR = 15, 2, 0.001

Logits = NDArray[np.float32]  # of the test rows


def logits_of(probabilities: NDArray[Any]) -> NDArray[np.float32]:
    """log(p / (1 - p)), finite for p of 0 and 1 too."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64).ravel(), 1e-12, 1 - 1e-12)
    return np.log(p / (1 - p)).astype(np.float32)


def columns_of(log: ClickLog, part: ClickPart) -> dict[str, NDArray[Any]]:
    """An array for each feature."""
    found: dict[str, NDArray[Any]] = {field.name: part.ids[:, n] for n, field in enumerate(log.inputs.fields)}
    return found | {name: part.values[:, n] for n, name in enumerate(log.inputs.numerics)}


def deepctr(kind: str) -> Callable[[ClickLog, int], Logits]:
    """DeepCTR-Torch's "DeepFM" or "WDL", trained by its `fit` an epoch at a time."""

    def run(log: ClickLog, seed: int) -> Logits:
        from deepctr_torch import models
        from deepctr_torch.inputs import DenseFeat, SparseFeat

        settings = SETTINGS[log.name]
        torch.manual_seed(seed)
        features = [SparseFeat(f.name, f.size, embedding_dim=settings["factors"]) for f in log.inputs.fields]
        features += [DenseFeat(name, 1) for name in log.inputs.numerics]
        model = getattr(models, kind)(
            features,
            features,
            dnn_hidden_units=settings["hidden"],
            dnn_dropout=settings["dropout"],
            dnn_use_bn=settings["batch_norm"],
            seed=seed,
            task="binary",
            device="cpu",
        )
        model.compile(torch.optim.Adam(model.parameters(), lr=LR), "binary_crossentropy", metrics=[])
        inputs = {name: columns_of(log, part) for name, part in log.parts.items()}
        train = log.parts["train"].labels
        best_auc, since, state = 0.0, 0, copy.deepcopy(model.state_dict())
        for _ in range(EPOCHS):
            model.fit(inputs["train"], train, batch_size=settings["batch_size"], epochs=1, verbose=0)
            validation = logits_of(model.predict(inputs["validation"], 16384))
            auc = click_figures(validation, log.parts["validation"].labels, None, ("auc",))["auc"]
            since += 1
            if auc > best_auc:
                best_auc, since, state = auc, 0, copy.deepcopy(model.state_dict())
            if since >= PATIENCE:
                break
        model.load_state_dict(state)
        return logits_of(model.predict(inputs["test"], 16384))

    return run


def lightgbm(log: ClickLog, seed: int) -> Logits:
    """Gradient-boosted trees with the ids as categories, stopped by the validation AUC."""
    import lightgbm as library

    def table(part: ClickPart) -> NDArray[np.float32]:
        return np.concatenate([part.ids.astype(np.float32), part.values], axis=1)

    categories = list(range(len(log.inputs.fields)))
    sets = {
        name: library.Dataset(table(log.parts[name]), log.parts[name].labels, categorical_feature=categories)
        for name in ("train", "validation")
    }
    options = {"objective": "binary", "metric": "auc", "learning_rate": 0.1, "seed": seed, "verbose": -1}
    options |= {"num_leaves": 63, "min_data_in_leaf": 20, "feature_fraction": 0.9, "bagging_freq": 1}
    options |= {"bagging_fraction": 0.9, "num_threads": torch.get_num_threads()}
    booster = library.train(
        options, sets["train"], 1000, [sets["validation"]], callbacks=[library.early_stopping(50, verbose=False)]
    )
    return logits_of(booster.predict(table(log.parts["test"])))


PEERS: dict[str, tuple[str, Callable[[ClickLog, int], Logits]]] = {
    "deepfm": ("DeepFM of DeepCTR-Torch 0.3.0", deepctr("DeepFM")),
    "wide-deep": ("Wide & Deep of DeepCTR-Torch 0.3.0", deepctr("WDL")),
    "lightgbm": ("LightGBM", lightgbm),
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", choices=[*SETTINGS, "adult", "ml-1m-clicks"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--data-dir")
    arguments = parser.parse_args()
    for name in arguments.logs:
        log = load_clicks(name, data_dir=arguments.data_dir)
        path = ROOT / f"{name.removesuffix('-clicks')}-click" / "peers.json"
        found = {peer["name"]: peer for peer in json.loads(path.read_text())} if path.exists() else {}
        for key in arguments.only:
            if key != "lightgbm" and name not in SETTINGS:
                continue
            title, train = PEERS[key]
            entry = found.setdefault(title, {"name": title, "data": log.sha256, "settings": {}, "runs": []})
            entry["settings"] = SETTINGS[name] if key != "lightgbm" else {}
            for seed in arguments.seeds:
                if any(run["seed"] == seed for run in entry["runs"]):
                    continue
                started = time.perf_counter()
                with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
                    test = train(log, seed)
                figures = click_figures(test, log.parts["test"].labels, None, METRICS)
                entry["runs"].append({"seed": seed, "seconds": time.perf_counter() - started, **figures})
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(list(found.values()), indent=1) + "\n")
                print(f"{name} {title} seed {seed}: {figures}", flush=True)


if __name__ == "__main__":
    main()
