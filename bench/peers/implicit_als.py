"""Sweeps of alternating least squares in the package implicit: the rival in `bench/als.py`; prints JSON.

It needs its own environment: pip install implicit scipy.

    IMPLICIT_PYTHON bench/peers/implicit_als.py --split SPLIT.npz --factors 64 --solver cg
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # implicit threads over the rows itself, and asks for this

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from ncf_split import NcfSplit, hit_rate


def run(args: argparse.Namespace, split: NcfSplit) -> dict[str, Any]:
    """Train `args.epochs` sweeps; time each and score the common candidates after it, with the clock stopped."""
    import implicit
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix

    # implicit's value is the whole confidence, 1 + alpha r here.
    values = np.full(len(split.users), 1 + args.alpha, dtype=np.float32)
    likes = csr_matrix((values, (split.users, split.items)), shape=(split.num_users, split.num_items))
    model = AlternatingLeastSquares(
        factors=args.factors,
        regularization=args.l2,
        alpha=1.0,
        iterations=args.epochs,
        use_cg=args.solver == "cg",
        num_threads=args.threads,
        random_state=args.seed,
    )
    seconds: list[float] = []
    cpu_seconds: list[float] = []
    hits: list[float] = []
    begun = [time.perf_counter(), time.process_time()]

    def after_sweep(*_: Any, **__: Any) -> None:
        seconds.append(round(time.perf_counter() - begun[0], 4))
        cpu_seconds.append(round(time.process_time() - begun[1], 4))
        users, items = model.user_factors, model.item_factors
        hits.append(hit_rate(split, lambda u, i: np.einsum("nd,nd->n", users[u], items[i])))
        begun[:] = time.perf_counter(), time.process_time()

    model.fit(likes, show_progress=False, callback=after_sweep)
    return {
        "peer": "implicit",
        "version": implicit.__version__,
        "seconds_per_epoch": seconds,
        "cpu_seconds_per_epoch": cpu_seconds,
        "validation_hr@10": hits,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--solver", choices=("cg", "cholesky"), default="cg")
    parser.add_argument("--alpha", type=float, default=10.0)
    parser.add_argument("--l2", type=float, default=40.0)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(json.dumps(run(args, NcfSplit.load(args.split))))


if __name__ == "__main__":
    main()
