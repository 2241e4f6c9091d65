"""Models of what is in an item beside simple methods and MF: cards, and the page results/content.md.

    python -m bench.content [--only SET ...] [--labels LABEL ...] [--seeds 1 2 3] [--page] [--list]

A set names its data and how it is cut: the published split, ratings cut at random, or items held out whole, which are
ranked among themselves ("cold"). The seed cuts the rows and makes the weights. A finished run is kept as
results/content/SET/LABEL/seed-N.json, and one that was cut off goes on from its checkpoint in build/content: start the
same command again. Data is found in DEEPREC_DATA.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

from bench.card_runs import Sayer, epochs_cell, run_command
from deeprec.data import (
    DataSchema,
    FeatureSchema,
    Interactions,
    Terms,
    Text,
    encode_tables,
    interactions_of_labels,
    load,
    load_media,
    with_features,
)
from deeprec.data.media.decoders import ImageDecoder
from deeprec.data.media.extract import extract, vector_cache
from deeprec.data.media.features import FEATURES
from deeprec.evaluate import Card, protocol, read_card
from deeprec.models import create
from deeprec.train import fit

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE, WORK = ROOT / "results" / "content", ROOT / "results" / "content.md", ROOT / "build" / "content"
WORDS = DataSchema(items=FeatureSchema((Text("plot", tokens="words", min_count=3),), label=None))
_TOPICS = 128
_RANKED, _RATED = ("ndcg@20", "recall@20"), ("rmse", "mse", "mae")


class Set(NamedTuple):
    """A data set and how it is cut.

    Attributes:
        what: for the page.
        kind: of its contenders: "ranking", "cold", "sounds", "ncf" or "rating".
        data: name of what `read` reads.
        rule: name of the protocol, and what is changed in it.
        features: columns of vectors.
        words: what the columns of texts mean; None: there are none.
        has_reviews: whether its rows have texts.
        figures: shown; the first says who is best.
    """

    what: str
    kind: str
    data: str
    rule: tuple[str, dict[str, Any]]
    features: tuple[str, ...] = ()
    words: DataSchema | None = None
    has_reviews: bool = False
    figures: tuple[str, ...] = _RANKED


class Contender(NamedTuple):
    """What is trained.

    Attributes:
        words: for the page.
        model: its name.
        options: of its config.
        kinds: of the sets that it is for.
        reads: what of the set's columns: "", "features", one column of them by name, "words" or "reviews".
        shuffled: a column of the items whose values change places, so that it says nothing.
    """

    words: str
    model: str
    options: dict[str, Any]
    kinds: tuple[str, ...] = ("ranking", "cold")
    reads: str = ""
    shuffled: str = ""


_COLD = ("cold-items", {"metrics": ("ndcg", "recall"), "cutoffs": (20,)})
_RATING = ("rating", {"test_share": 0.1, "validation_share": 0.1})
SETS = {
    "ml-1m-ratings": Set(
        "MovieLens-1M with plots, ratings, 80/10/10",
        "rating",
        "ml-1m-plots",
        _RATING,
        words=WORDS,
        figures=_RATED,
    ),
    "beauty-ratings": Set(
        "Amazon All Beauty 2023, ratings with reviews, 80/10/10: 9,829 rows, 3,543 users, 2,998 items",
        "rating",
        "amazon-beauty-reviews",
        _RATING,
        has_reviews=True,
        figures=_RATED,
    ),
    "instruments-ratings": Set(
        "Amazon Musical Instruments (a half), ratings with reviews, 80/10/10: 5,050 rows, 1,381 users, 392 items",
        "rating",
        "amazon-instruments-reviews",
        _RATING,
        has_reviews=True,
        figures=_RATED,
    ),
    "tiktok": Set(
        "TikTok, the published split: 68,722 rows, 9,308 users, 6,710 videos with vectors of picture and sound",
        "ranking",
        "tiktok",
        ("random", {"holdout": "official", "metrics": ("ndcg", "recall"), "cutoffs": (20,)}),
        ("image", "audio"),
    ),
    "tiktok-cold": Set("TikTok, a tenth of the videos held out whole", "cold", "tiktok", _COLD, ("image", "audio")),
    "ml-1m-cold": Set(
        "MovieLens-1M with plots and posters, a tenth of the films held out whole: 1,000,209 ratings taken as likes, "
        "3,706 films, 3,256 of them with a poster",
        "cold",
        "ml-1m-plots",
        _COLD,
        ("topics", "poster"),
        WORDS,
    ),
    "instruments-cold": Set(
        "Instruments: 200 clips of 10 classes, 10,000 likes of 500 users drawn by tastes for classes, a tenth of the "
        "clips held out whole",
        "sounds",
        "instruments",
        ("cold-items", {"metrics": ("ndcg", "recall"), "cutoffs": (5,)}),
        figures=("ndcg@5", "recall@5"),
    ),
    "ml-100k-ncf": Set(
        "MovieLens-100K, NCF's protocol: the last item among 99 others",
        "ncf",
        "ml-100k",
        ("ncf", {}),
        figures=("hr@10", "ndcg@10"),
    ),
    "ml-1m-ncf": Set(
        "MovieLens-1M, NCF's protocol: the last item among 99 others",
        "ncf",
        "ncf-ml-1m",
        ("ncf", {}),
        figures=("hr@10", "ndcg@10"),
    ),
}
_VBPR = {"factors": 32, "content_factors": 32, "epochs": 40, "patience": 4}
_VBPR_TUNED = {"factors": 64, "content_factors": 8, "content_l2": 0.1, "patience": 4}
_SOUND = {"audio": "file", "factors": 16, "seconds": 5.0, "window": 2.0, "batch_size": 32, "patience": 8, "epochs": 30}
_DEEPCONN = {"width": 16, "filters": 32, "embedding_dim": 32, "length": 100, "vocabulary": 5000, "epochs": 15}
_NCF, _RATINGS = ("ncf",), ("rating",)
CONTENDERS = {
    "popularity": Contender("popularity", "popularity", {}, ("ranking", "cold", "sounds", "ncf")),
    "item-knn": Contender("item-KNN", "item-knn", {}, ("ranking", "ncf")),
    "bpr": Contender("MF by BPR", "bpr", {"factors": 64, "patience": 4}, ("ranking",)),
    "als": Contender("MF by ALS", "als", {"factors": 64}, ("ranking",)),
    "tf-idf": Contender("TF-IDF content KNN", "tf-idf", {}, reads="words"),
    "bm25": Contender("BM25 content KNN", "bm25", {}, reads="words"),
    "vbpr": Contender("VBPR", "vbpr", _VBPR, reads="features"),
    "vbpr-tuned": Contender("VBPR, tuned on validation", "vbpr", _VBPR_TUNED, ("ranking",), "features"),
    "vbpr-image": Contender("VBPR, picture alone", "vbpr", _VBPR, reads="image"),
    "vbpr-audio": Contender("VBPR, sound alone", "vbpr", _VBPR, reads="audio"),
    "vbpr-topics": Contender("VBPR, plots alone", "vbpr", _VBPR, reads="topics"),
    "vbpr-poster": Contender("VBPR, posters alone", "vbpr", _VBPR, reads="poster"),
    "deep-music": Contender("ALS, and a network from content to its factors", "deep-music", {}, reads="features"),
    "deep-music-audio": Contender("the same, sound alone", "deep-music", {}, reads="audio"),
    "deep-music-topics": Contender("the same, plots alone", "deep-music", {}, reads="topics"),
    "deep-music-poster": Contender("the same, posters alone", "deep-music", {}, reads="poster"),
    "audio-cnn": Contender("ALS, and an AudioCNN from clips to its factors", "deep-music", _SOUND, ("sounds",)),
    "audio-cnn-shuffled": Contender("the same, clips shuffled", "deep-music", _SOUND, ("sounds",), shuffled="file"),
    "bpr-32": Contender("MF by BPR, 32 factors", "bpr", {"factors": 32}, _NCF),
    "convncf": Contender("ConvNCF, 32 factors, 8 maps", "convncf", {"channels": 8, "epochs": 6}, _NCF),
    "bias": Contender("biases", "bias", {}, _RATINGS),
    "svd++": Contender("SVD++: biased MF", "svd++", {}, _RATINGS),
    "pmf": Contender("PMF: ConvMF without texts", "convmf", {"user_l2": 20.0, "item_l2": 20.0}, _RATINGS, "words"),
    "convmf": Contender("ConvMF", "convmf", {"text": "plot"}, _RATINGS, "words"),
    "deepconn": Contender("DeepCoNN, without the review of the pair", "deepconn", _DEEPCONN, _RATINGS, "reviews"),
    "deepconn-own": Contender(
        "DeepCoNN, trained with it", "deepconn", {**_DEEPCONN, "with_own": True}, _RATINGS, "reviews"
    ),
}


def read(name: str) -> Interactions:
    """The data of a set, with the columns that its contenders read."""
    if name == "instruments":
        table = load_media("audio-instruments")
        return interactions_of_labels(table.items, table.label)
    if name != "ml-1m-plots":
        return load(name)
    data = load("ml-1m")
    place = Path(os.environ["DEEPREC_DATA"]) / "ml-1m" / "movie_overviews.csv.gz"
    table = pl.read_csv(place).select(item_id=pl.col("movie_id"), plot=pl.col("overview"))
    met = pl.DataFrame({"item_id": data.item_ids.values}).join(table, on="item_id", how="left")
    data = with_features(data, items=met)
    return with_features(data, items=met.with_columns(topics=pl.Series(_topics(data)), poster=_posters(data)))


def _posters(data: Interactions) -> pl.Series:
    """Features without training of the posters, zeros for films without one."""
    table = load_media("ml-1m")
    keys = pl.DataFrame({"item_id": data.item_ids.values}).join(table.items, on="item_id", how="left")["file"]
    encoder = FEATURES["image"](ImageDecoder())
    with vector_cache(WORK / "posters", encoder) as cache:
        made = extract(data.item_ids.values.to_list(), keys.to_list(), encoder, table.files, cache)
        vectors = np.zeros((len(keys), encoder.width), np.float32)
        vectors[made.rows >= 0] = cache.take(made.rows[made.rows >= 0])[0]
    return pl.Series(vectors)


def _topics(data: Interactions) -> Any:
    """[num_items, 128] the strongest directions of the TF-IDF vectors of the plots (latent semantic analysis)."""
    table = encode_tables(data, WORDS).items
    assert table is not None
    terms = Terms.of_table(table).weighted("tf-idf")
    torch.manual_seed(0)
    matrix = torch.zeros(len(terms), terms.size)
    owners = torch.arange(len(terms)).repeat_interleave(torch.from_numpy(np.diff(terms.offsets)))
    matrix[owners, torch.from_numpy(terms.ids).long()] = torch.from_numpy(terms.weights)
    left, sizes, _ = torch.svd_lowrank(matrix, _TOPICS, niter=4)
    return (left * sizes).numpy()


def is_run(name: str, label: str) -> bool:
    """Whether a contender is for a set, and has there what it reads."""
    chosen, each = SETS[name], CONTENDERS[label]
    if chosen.kind not in each.kinds:
        return False
    if each.reads in ("words", "reviews"):
        return chosen.words is not None if each.reads == "words" else chosen.has_reviews
    return each.reads in ("", "features") or each.reads in chosen.features


def options_of(each: Contender, chosen: Set) -> dict[str, Any]:
    """Of the config, with the columns that are read."""
    if each.reads in ("", "words", "reviews"):
        folder = {"folder": str(load_media("audio-instruments").files.source)} if "audio" in each.options else {}
        return {**each.options, **folder}
    return {**each.options, "features": chosen.features if each.reads == "features" else (each.reads,)}


def run(name: str, label: str, seed: int, data: Interactions) -> None:
    """Train one contender on one set and leave its card."""
    if not is_run(name, label):
        return
    each, chosen, started = CONTENDERS[label], SETS[name], time.perf_counter()
    say = Sayer(f"{name}, {label}, seed {seed}", chosen.figures[0])
    base, changes = chosen.rule
    seeded = {} if changes.get("holdout") == "official" or chosen.kind == "ncf" else {"seed": seed}
    rule = protocol(base, **changes, **seeded)
    if each.shuffled:
        table = data.item_features
        assert table is not None
        data = with_features(data, items=table.with_columns(pl.col(each.shuffled).shuffle(seed=seed)))
    inputs: dict[str, Any] = {"schema": chosen.words} if each.model in ("tf-idf", "bm25") else {}
    result = fit(
        create(each.model, **options_of(each, chosen)),
        data,
        protocol=rule,
        seed=seed,
        out=WORK / name / label / f"seed-{seed}",
        resume=True,
        on_progress=say,
        baselines=False,
        **inputs,
    )
    card, place = result.card, RESULTS / name / label / f"seed-{seed}.json"
    if "audio" in each.options:  # without the folders of this machine
        card = dataclasses.replace(card, config={**card.config, "folder": "audio-instruments/clips.tar"})
    place.parent.mkdir(parents=True, exist_ok=True)
    card.write(place)
    reached = ", ".join(f"{figure} {_figure(card, figure):.4f}" for figure in chosen.figures)
    print(f"{say.what}: {reached}, epoch {card.epoch}, {time.perf_counter() - started:.0f} s", flush=True)


def _figure(card: Card, figure: str) -> float:
    """Of the test part; "mse" is the square of "rmse"."""
    return float(card.metrics["rmse"]) ** 2 if figure == "mse" else float(card.metrics[figure])


def _cell(values: list[float], is_best: bool) -> str:
    text = f"{statistics.mean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")
    return f"**{text}**" if is_best else text


def page() -> str:
    """The Markdown of all cards that are there."""
    lines = [
        "# What is in an item",
        "",
        "Cold: items held out whole with all their rows, a tenth for the test and a tenth to choose the epoch by,",
        "ranked among themselves. What knows nothing of an item but who met it gives all of them one score, which",
        "ranks last; by guessing, recall@K would be K over the number of test items. Of a rating that is predicted",
        "the review is in no document. ALS, with content and without, is trained anew on training and validation rows",
        "for the epochs that these chose, as its defaults are; the others are not. Mean and deviation over the seeds;",
        "most sets have one seed, in one thread of a machine that did other work too, so that seconds compare roughly.",
        "Written by `bench/content.py`.",
    ]
    for name, chosen in SETS.items():
        places = {label: sorted((RESULTS / name / label).glob("seed-*.json")) for label in CONTENDERS}
        cards = {
            label: [read_card(path) for path in paths]
            for label, paths in places.items()
            if paths and is_run(name, label)
        }
        if not cards:
            continue
        values = {
            label: [[_figure(card, figure) for card in each] for figure in chosen.figures]
            for label, each in cards.items()
        }
        means = {label: [statistics.mean(each) for each in rows] for label, rows in values.items()}
        best = min if chosen.kind == "rating" else max
        bests = [best(each[at] for each in means.values()) for at in range(len(chosen.figures))]
        leader = best(means, key=lambda label: means[label][0])
        how = f"**{CONTENDERS[leader].words}** is best by {chosen.figures[0]}."
        lines += ["", f"## {chosen.what}", "", how, ""]
        lines += [f"| method | seeds | {' | '.join(chosen.figures)} | epoch | seconds |"]
        lines += ["|---" * (len(chosen.figures) + 4) + "|"]
        for label, each in cards.items():
            cells = [
                _cell(rows, mean == top) for rows, mean, top in zip(values[label], means[label], bests, strict=True)
            ]
            seconds = f"{statistics.mean(card.seconds for card in each):.0f}"
            row = [CONTENDERS[label].words, str(len(each)), *cells, epochs_cell(each), seconds]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """See the module."""
    run_command(
        __doc__,
        RESULTS,
        SETS,
        CONTENDERS,
        [1, 2, 3],
        lambda name: SETS[name].data,
        read,
        run,
        lambda: PAGE.write_text(page(), encoding="utf-8"),
    )


if __name__ == "__main__":
    main()
