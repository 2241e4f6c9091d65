"""What encoders trained from scratch hear and see in real clips, beside a linear model on features without training.

    python -m bench.clips [--only SET ...] [--seeds 1 2 3]

Clips of a group (a speaker, the video they were cut from) are on one side of each split. Of what is trained on, a fifth
chooses the epoch of the network and the strength of the linear model's L2. A seed is kept as
results/clips/SET/folds-N.json; the page is results/clips.md. Clips are found in DEEPREC_DATA.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from bench.machine import machine, versions
from deeprec.batches.media import ItemMedia, MediaTensors
from deeprec.data import load_media
from deeprec.data.media.decoders import ArrayDecoder, AudioDecoder, MediaBatch, VideoDecoder
from deeprec.data.media.features import FEATURES
from deeprec.nn import AudioCNN, VideoCNN

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE, WORK = ROOT / "results" / "clips", ROOT / "results" / "clips.md", ROOT / "build" / "clips"
_STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)  # 1 / L2
_WIDTH, _BATCH, _LR = 64, 32, 0.002


class Clips(NamedTuple):
    """A set, how it is read, and the network for it.

    Attributes:
        what: for the page.
        decoder: of its files.
        encoder: makes the network, by a generator.
        epochs: of training, of which the best by validation counts.
        folds: of the clips, each tested once.
    """

    what: str
    decoder: ArrayDecoder
    encoder: Callable[[torch.Generator], nn.Module]
    epochs: int
    folds: int


def _digits(generator: torch.Generator) -> nn.Module:
    return AudioCNN(_WIDTH, sample_rate=8000, window=256, hop=128, mels=40, generator=generator)


def _instruments(generator: torch.Generator) -> nn.Module:
    return AudioCNN(_WIDTH, sample_rate=16000, generator=generator)


def _videos(generator: torch.Generator) -> nn.Module:
    return VideoCNN(_WIDTH, generator=generator)


SETS = {
    "audio-spoken-digits": Clips(
        "Spoken digits: 2,000 clips, 10 digits; each of 4 speakers is tested by what the other three said",
        AudioDecoder(8000, 1.0),
        _digits,
        12,
        4,
    ),
    "audio-instruments": Clips(
        "Instruments: 200 clips of 5 seconds, 10 classes", AudioDecoder(16000, 5.0), _instruments, 30, 5
    ),
    "video-fights": Clips(
        "Fights: 202 filmed clips, fight or none; clips of one source video are on one side",
        VideoDecoder(8, (64, 64)),
        _videos,
        20,
        5,
    ),
    "video-exercises": Clips(
        "Exercises: 196 drawn clips, 9 parts of the body", VideoDecoder(8, (64, 64)), _videos, 20, 5
    ),
}


def splits(
    labels: NDArray[np.int64], groups: NDArray[Any], folds: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Training, validation and test clips of each fold; no group is on two sides."""
    cut = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for known, test in cut.split(labels, labels, groups):
        parts = min(5, len(np.unique(groups[known])))
        inner = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
        train, chosen = next(inner.split(known, labels[known], groups[known]))
        yield known[train], known[chosen], test


def linear_accuracy(
    vectors: NDArray[np.float32], labels: NDArray[np.int64], train: Any, chosen: Any, test: Any
) -> float:
    """Of logistic regression on standardised features."""

    def fitted(strength: float, rows: Any) -> Any:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        return model.fit(vectors[rows], labels[rows])

    best = max(_STRENGTHS, key=lambda strength: fitted(strength, train).score(vectors[chosen], labels[chosen]))
    return float(fitted(best, np.concatenate([train, chosen])).score(vectors[test], labels[test]))


def network_accuracy(
    clips: Clips, media: MediaTensors, labels: Tensor, train: Any, chosen: Any, test: Any, seed: int
) -> float:
    """Of the network with a linear layer behind it, at the epoch that is best on `chosen`."""
    torch.manual_seed(seed)
    encoder = clips.encoder(torch.Generator().manual_seed(seed))
    head = nn.Linear(_WIDTH, int(labels.max()) + 1)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=_LR)

    def logits(rows: Any) -> Tensor:
        part = MediaTensors(*(tensor[rows] for tensor in media))
        made: Tensor = head(part.encode(encoder))
        return made

    def accuracy(rows: Any) -> float:
        encoder.eval()
        with torch.no_grad():
            right = [logits(block).argmax(1) == labels[block] for block in torch.as_tensor(rows).split(_BATCH)]
        encoder.train()
        return float(torch.cat(right).float().mean())

    best, reached = -1.0, 0.0
    for _ in range(clips.epochs):
        for rows in torch.as_tensor(train)[torch.randperm(len(train))].split(_BATCH):
            optimizer.zero_grad()
            F.cross_entropy(logits(rows), labels[rows]).backward()
            optimizer.step()
        validated = accuracy(chosen)
        if validated > best:
            best, reached = validated, accuracy(test)
    return reached


def run(name: str, seed: int) -> None:
    """Both on every fold of a set."""
    clips, table, started = SETS[name], load_media(name), time.perf_counter()
    keys = table.items["file"].to_list()
    with ItemMedia(keys, table.files, clips.decoder, WORK / name) as clip_media:
        media = clip_media.gather(np.arange(len(keys)))
    made = FEATURES[table.kind](clips.decoder)
    vectors = np.concatenate(
        [
            made(MediaBatch(media.values[rows].numpy(), media.lengths[rows].numpy()))
            for rows in torch.arange(len(keys)).split(_BATCH)
        ]
    )
    labels = table.items[table.label].rank("dense").to_numpy().astype(np.int64) - 1
    groups = table.items[table.group].to_numpy() if table.group else np.arange(len(keys))
    rows: dict[str, list[float]] = {"linear": [], "network": [], "most frequent": []}
    for number, (train, chosen, test) in enumerate(splits(labels, groups, clips.folds, seed)):
        rows["linear"].append(linear_accuracy(vectors, labels, train, chosen, test))
        there = torch.from_numpy(labels)
        rows["network"].append(network_accuracy(clips, media, there, train, chosen, test, seed))
        most = np.bincount(labels[np.concatenate([train, chosen])]).argmax()
        rows["most frequent"].append(float((labels[test] == most).mean()))
        print(f"{name}, seed {seed}, fold {number + 1} of {clips.folds}: "
              f"linear {rows['linear'][-1]:.3f}, network {rows['network'][-1]:.3f}", flush=True)  # fmt: skip
    written = {"set": name, "seed": seed, "accuracy": rows, "seconds": round(time.perf_counter() - started)}
    place = RESULTS / name / f"folds-{seed}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps({**written, "machine": machine(), "versions": versions()}, indent=1) + "\n")


def page() -> str:
    """The Markdown of what is there."""
    lines = [
        "# Real clips, by encoders trained from scratch",
        "",
        "Accuracy on the folds' test clips, mean and deviation over folds and seeds. The linear model is logistic",
        "regression on the features without training of `deeprec features extract`. Both are told the label of the",
        "training clips alone, of which a fifth chooses the network's epoch and the linear model's L2, which is then",
        "fitted on all of them. Written by `bench/clips.py`.",
        "",
        "| set | seeds | most frequent class | linear on features | encoder |",
        "|---|---|---|---|---|",
    ]
    for name, clips in SETS.items():
        cards = [json.loads(path.read_text()) for path in sorted((RESULTS / name).glob("folds-*.json"))]
        if not cards:
            continue
        values = {key: [x for card in cards for x in card["accuracy"][key]] for key in cards[0]["accuracy"]}
        best = max(statistics.mean(each) for each in values.values())
        cells = [_cell(values[key], best) for key in ("most frequent", "linear", "network")]
        lines.append(f"| {clips.what} | {len(cards)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float], best: float) -> str:
    mean = statistics.mean(values)
    text = f"{mean:.3f} ± {statistics.stdev(values):.3f}"
    return f"**{text}**" if mean == best else text


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="bench.clips", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    chosen = parser.parse_args()
    for seed in chosen.seeds:
        for name in chosen.only:
            if not (RESULTS / name / f"folds-{seed}.json").exists():
                run(name, seed)
                PAGE.write_text(page(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
