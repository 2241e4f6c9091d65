"""One epoch of CDAE in RecBole 1.2.1: the rival in `bench/cdae.py`; prints JSON.

RecBole's CDAE trains on the dense [users, items] output with every item that a user has not liked as a negative. It
needs its own environment, see `recbole_neumf.py`.

    RECBOLE_PYTHON bench/peers/recbole_cdae.py --split SPLIT.npz --batch 2048
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from ncf_split import NcfSplit, hit_rate
from recbole_neumf import NAME, write_atomic


def options(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """RecBole's configuration: its defaults but for what the command line names, and no regulariser."""
    return {
        "data_path": str(folder),
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": {"inter": ["user_id", "item_id"]},
        "embedding_size": args.hidden,
        "hid_activation": "sigmoid",
        "loss_type": "BCE",
        "corruption_ratio": args.corruption,
        "reg_weight_1": 0.0,
        "reg_weight_2": 0.0,
        "train_batch_size": args.batch,
        "train_neg_sample_args": None,
        "learner": args.optimizer,
        "learning_rate": args.lr,
        "epochs": args.epochs,
        "seed": args.seed,
        "use_gpu": False,
        "gpu_id": "",
        "device": "cpu",
        "show_progress": False,
        "state": "ERROR",
        "eval_args": {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "RO", "mode": "full"},
        "checkpoint_dir": str(folder / "saved"),
    }


def run(args: argparse.Namespace, split: NcfSplit, folder: Path) -> dict[str, Any]:
    """Train `args.epochs` epochs with RecBole's own trainer; time each and score the common candidates."""
    import recbole
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    torch.set_num_threads(args.threads)
    config = Config(model="CDAE", dataset=NAME, config_dict=options(args, folder))
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train_data, _, _ = data_preparation(config, dataset)
    model = get_model("CDAE")(config, train_data.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "CDAE")(config, model)
    # RecBole numbers tokens by first appearance from 1
    ids = {
        field: np.zeros(size, dtype=np.int64)
        for field, size in (("user_id", split.num_users), ("item_id", split.num_items))
    }
    for field, table in ids.items():
        for token, index in dataset.field2token_id[field].items():
            if token != "[PAD]":
                table[int(token)] = index

    def score(users: np.ndarray, items: np.ndarray) -> np.ndarray:
        distinct, places = np.unique(ids["user_id"][users], return_inverse=True)
        with torch.no_grad():
            some = torch.from_numpy(distinct)
            return model.forward(model.get_rating_matrix(some), some).numpy()[places, ids["item_id"][items]]

    seconds, losses, hits = [], [], []
    for epoch in range(args.epochs):
        start = time.perf_counter()
        model.train()
        losses.append(trainer._train_epoch(train_data, epoch, show_progress=False))
        seconds.append(round(time.perf_counter() - start, 4))
        model.eval()
        hits.append(hit_rate(split, score))
    return {
        "version": f"{recbole.__version__} (torch {torch.__version__})",
        "batches_per_epoch": len(train_data),
        "seconds_per_epoch": seconds,
        "loss": [float(value) / split.num_users for value in losses],
        "validation_hr@10": hits,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", type=Path, required=True, help=".npz written by NcfSplit.save")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--corruption", type=float, default=0.5)
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--batch", type=int, default=2048, help="users")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    split = NcfSplit.load(args.split)
    report: dict[str, Any] = {"peer": "recbole", "threads": args.threads}
    sys.argv = sys.argv[:1]  # RecBole reads the command line too
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):  # RecBole prints
        home = Path.cwd()
        os.chdir(folder)  # RecBole writes logs and checkpoints into the working directory
        try:
            write_atomic(split, Path(folder))
            report.update(run(args, split, Path(folder)))
        finally:
            os.chdir(home)
    print(json.dumps({**report, "examples_per_epoch": split.num_users * split.num_items}))


if __name__ == "__main__":
    main()
