"""One epoch of NeuMF in RecBole 1.2.1 on the NCF triple: the rival in `bench/neumf.py`; prints JSON.

RecBole needs its own environment: `pip install recbole==1.2.1 "numpy<2" "setuptools<80" "pandas<2.2"` beside torch.
The pairs are handed over as pre-split atomic files, so RecBole trains on exactly the rows its rivals train on.

    RECBOLE_PYTHON bench/peers/recbole_neumf.py --ncf DIR/ml-1m --batch 4096 [--mlp-embedding 128 --hidden 128 64]
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
from ncf_split import NcfSplit, from_triple, hit_rate

NAME = "ncf"


def write_atomic(split: NcfSplit, folder: Path) -> None:
    """RecBole's pre-split atomic files: the training pairs, and the held-out pair as validation and as test."""
    parts = {
        "train": (split.users, split.items),
        "valid": (np.arange(split.num_users), split.candidates[:, 0]),
        "test": (np.arange(split.num_users), split.candidates[:, 0]),
    }
    (folder / NAME).mkdir(parents=True)
    for part, (users, items) in parts.items():
        rows = "".join(f"{user}\t{item}\n" for user, item in zip(users.tolist(), items.tolist(), strict=True))
        (folder / NAME / f"{NAME}.{part}.inter").write_text("user_id:token\titem_id:token\n" + rows)


def options(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """RecBole's configuration: its defaults but for what the command line names (and no accelerator)."""
    return {
        "data_path": str(folder),
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": {"inter": ["user_id", "item_id"]},
        "mf_embedding_size": args.factors,
        "mlp_embedding_size": args.mlp_embedding,
        "mlp_hidden_size": args.hidden,
        "dropout_prob": args.dropout,
        "train_batch_size": args.batch,
        "train_neg_sample_args": {"distribution": "uniform", "sample_num": args.negatives, "dynamic": False},
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
    config = Config(model="NeuMF", dataset=NAME, config_dict=options(args, folder))
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train_data, _, _ = data_preparation(config, dataset)
    model = get_model("NeuMF")(config, train_data.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "NeuMF")(config, model)
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
        pairs = {"user_id": torch.from_numpy(ids["user_id"][users]), "item_id": torch.from_numpy(ids["item_id"][items])}
        with torch.no_grad():
            return model.predict(pairs).numpy()

    seconds, losses, hits = [], [], []
    for epoch in range(args.epochs):
        start = time.perf_counter()
        model.train()
        losses.append(trainer._train_epoch(train_data, epoch, show_progress=False))
        seconds.append(round(time.perf_counter() - start, 3))
        model.eval()
        hits.append(hit_rate(split, score))
    return {
        "version": f"{recbole.__version__} (torch {torch.__version__})",
        "batches_per_epoch": len(train_data),
        "seconds_per_epoch": seconds,
        "loss": [float(value) / len(train_data) for value in losses],
        "validation_hr@10": hits,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ncf", type=Path, help="prefix of the NCF triple, for instance DIR/ml-1m")
    parser.add_argument("--split", type=Path, help=".npz written by NcfSplit.save, instead of --ncf")
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--mlp-embedding", type=int, default=128, help="per side; 128 gives the layers 256-128-64")
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 64])
    parser.add_argument("--dropout", type=float, default=0.0, help="RecBole's own default is 0.1; the paper has none")
    parser.add_argument("--negatives", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if (args.ncf is None) == (args.split is None):
        parser.error("give exactly one of --ncf and --split")
    split = NcfSplit.load(args.split) if args.split else from_triple(args.ncf, seed=args.seed)
    config = {key: getattr(args, key) for key in ("factors", "mlp_embedding", "hidden", "dropout", "batch", "lr")}
    report: dict[str, Any] = {"peer": "recbole", "config": config, "threads": args.threads}
    sys.argv = sys.argv[:1]  # RecBole reads the command line too
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):  # RecBole prints
        home = Path.cwd()
        os.chdir(folder)  # RecBole writes logs and checkpoints into the working directory
        try:
            write_atomic(split, Path(folder))
            report.update(run(args, split, Path(folder)))
        finally:
            os.chdir(home)
    print(json.dumps({**report, "examples_per_epoch": len(split.users) * (1 + args.negatives)}))


if __name__ == "__main__":
    main()
