"""SASRec in RecBole 1.2.1 on a file of sequences: the rival in `bench/sasrec.py`; prints JSON.

RecBole needs its own environment: `pip install recbole==1.2.1 "numpy<2" "setuptools<80" "pandas<2.2"` beside torch.
RecBole makes a training row of every prefix of a user's sequence, with one target. A whole epoch of such rows takes
long on a CPU, so batches of rows of the first users are timed, through its own trainer, and an epoch is their time by
the row.

    RECBOLE_PYTHON bench/peers/recbole_sasrec.py --file DIR/sasrec/ml-1m.txt.gz --length 50 [--loss CE]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gzip
import itertools
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from memory import held, high_water, start_high_water

NAME = "sequences"


def write_atomic(file: Path, folder: Path, users: int) -> tuple[int, int]:
    """RecBole's atomic file: lines of "user item" in order, with their place as the time.

    Args:
        users: the first ones alone are written.
    Returns:
        how many rows and users the whole file has.
    """
    (folder / NAME).mkdir(parents=True)
    rows, known = 0, set()
    with gzip.open(file, "rt") as source, (folder / NAME / f"{NAME}.inter").open("w") as target:
        target.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for line in source:
            user, item = line.split()
            known.add(user)
            rows += 1
            if len(known) <= users:
                target.write(f"{user}\t{item}\t{rows}\n")
    return rows, len(known)


def options(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """RecBole's configuration: its defaults but for what the command line names (and no accelerator)."""
    return {
        "data_path": str(folder),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": args.length,
        "hidden_size": args.factors,
        "inner_size": args.hidden,
        "n_heads": args.heads,
        "hidden_dropout_prob": args.dropout,
        "attn_dropout_prob": args.attention_dropout,
        "loss_type": args.loss,
        "train_neg_sample_args": None if args.loss == "CE" else {"distribution": "uniform", "sample_num": 1},
        "train_batch_size": args.batch,
        "eval_batch_size": args.batch,
        "eval_args": {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full"},
        "metrics": ["Hit", "NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "seed": args.seed,
        "use_gpu": False,
        "gpu_id": "",
        "device": "cpu",
        "show_progress": False,
        "state": "ERROR",
        "checkpoint_dir": str(folder / "saved"),
    }


def first(loader: Any, count: int) -> Any:
    """A loader of the first batches of another, of its kind."""
    count = min(count, len(loader))
    short = copy.copy(loader)
    parts = {"__iter__": lambda self: itertools.islice(iter(loader), count), "__len__": lambda self: count}
    short.__class__ = type("First", (type(loader),), parts)
    return short


def run(args: argparse.Namespace, folder: Path, targets: int, users: int) -> dict[str, Any]:
    """Time the first batches of an epoch, and of the evaluation of all users over all items.

    Args:
        targets, users: of a whole epoch and a whole evaluation: each user has a row less than they have items, and two
            of these are held out.
    """
    import recbole
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    torch.set_num_threads(args.threads)
    config = Config(model="SASRec", dataset=NAME, config_dict=options(args, folder))
    init_seed(config["seed"], config["reproducibility"])
    train_data, _, test_data = data_preparation(config, create_dataset(config))
    model = get_model("SASRec")(config, train_data.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
    start_high_water()
    before = held()
    part = first(train_data, args.batches)
    start, cpu_start = time.perf_counter(), time.process_time()
    loss = trainer._train_epoch(part, 0, show_progress=False)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    memory = high_water() - before
    shown = first(test_data, args.eval_batches)
    start, cpu_start = time.perf_counter(), time.process_time()
    trainer.evaluate(shown, load_best_model=False, show_progress=False)
    evaluation, cpu_evaluation = time.perf_counter() - start, time.process_time() - cpu_start
    trained, asked = min(len(part) * args.batch, len(train_data.dataset)), min(shown_users(shown), users)
    return {
        "version": f"{recbole.__version__} (torch {torch.__version__})",
        "timed_targets": trained,
        "timed_users": asked,
        "num_items": int(model.n_items) - 1,
        "seconds_per_epoch": [seconds / trained * targets],
        "cpu_seconds_per_epoch": cpu_seconds / trained * targets,
        "cpu_microseconds_per_target": cpu_seconds / trained * 1e6,
        "targets_per_epoch": targets,
        "peak_mib": memory,
        "evaluation_seconds": evaluation / asked * users,
        "cpu_evaluation_seconds": cpu_evaluation / asked * users,
        "loss": float(loss) / len(part),
    }


def shown_users(loader: Any) -> int:
    """Rows of the batches of an evaluation."""
    return sum(len(batch[0]) for batch in loader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, required=True, help="lines of 'user item', gzip")
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--attention-dropout", type=float, default=0.5)
    parser.add_argument("--loss", choices=("CE", "BPR"), default="CE")
    parser.add_argument("--batch", type=int, default=2048, help="RecBole's own")
    parser.add_argument("--batches", type=int, default=5, help="that are timed")
    parser.add_argument("--users", type=int, default=600, help="whose rows are made; those of all take long")
    parser.add_argument("--eval-batches", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.file = args.file.resolve()
    sys.argv = sys.argv[:1]  # RecBole reads the command line too
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):  # RecBole prints
        home = Path.cwd()
        os.chdir(folder)  # RecBole writes logs and checkpoints into the working directory
        try:
            rows, users = write_atomic(args.file, Path(folder), args.users)
            report = run(args, Path(folder), rows - 3 * users, users)
        finally:
            os.chdir(home)
    print(json.dumps({"peer": "recbole", **report}))


if __name__ == "__main__":
    main()
