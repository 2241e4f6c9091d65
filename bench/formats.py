"""One command from each raw file of the data folder to a result; writes results/formats.md.

    DEEPREC_DATA=... python -m bench.formats

Every command is run as it is printed, with a simple model; `SETS` also says how many rows, users and items each holds,
which tests/data/test_formats.py checks.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from typer.testing import CliRunner

from deeprec.cli.app import app
from deeprec.evaluate import read_card

_RESULT = Path(__file__).parents[1] / "results" / "formats.md"


class Raw(NamedTuple):
    """A raw file or folder, and how it is read.

    Attributes:
        path: below the data folder.
        layout: for people.
        words: options behind `--data PATH`; {data} is the data folder.
        rows, users, items: as the README of the data folder says, before duplicates are dropped; of clicks rows alone.
    """

    path: str
    layout: str
    words: str
    rows: int
    users: int = 0
    items: int = 0


INTERACTIONS = (
    Raw("ml-100k/u.data", "user item rating time, tabs, no names", "", 100_000, 943, 1_682),
    Raw("ml-100k/u1.base", "two files of a fold", "--test-data {data}/ml-100k/u1.test", 100_000, 943, 1_682),
    Raw("ml-1m/ratings_rank.dat", "user::item::rating::rank, no names", "", 1_000_209, 6_040, 3_706),
    Raw("ncf/ml-1m.train.rating", "NCF triple", "", 1_000_209, 6_040, 3_706),
    Raw("ncf/AMusic.train.rating", "NCF triple", "", 46_087, 1_776, 12_929),
    Raw("ncf/lastfm.train.rating", "NCF triple", "", 69_149, 1_741, 2_665),
    Raw("sasrec/ml-1m.txt", "user item, blanks, in order of time", "data.order=file", 999_611, 6_040, 3_416),
    Raw("bert4rec/beauty.txt", "user item, blanks, in order of time", "data.order=file --protocol ncf",
        353_962, 40_226, 54_542),
    Raw("s3rec/Beauty.txt", "user item item ...", "--protocol ncf", 198_502, 22_363, 12_101),
    Raw("s3rec/Sports_and_Outdoors.txt", "user item item ...", "--protocol ncf", 296_337, 35_598, 18_357),
    Raw("s3rec/LastFM.txt", "user item item ...", "", 52_551, 1_090, 3_646),
    Raw("pinterest-37k", "folder: train and test of user item item ...", "--protocol ncf", 1_025_709, 37_501, 9_836),
    Raw("citeulike-a/users.dat", "count item item ...", "", 204_986, 5_551, 16_980),
    Raw("session/diginetica/all_train_seq.txt", "a session a line", "--protocol ncf", 906_140, 186_670, 43_097),
    Raw("hetrec2011-lastfm-2k/user_artists.dat", "tabs, names of its own", "", 92_834, 1_892, 17_632),
    Raw("hetrec2011-lastfm-2k/user_taggedartists.dat", "tabs, further columns", "", 186_479, 1_892, 12_523),
    Raw("hetrec2011-tag-aware/lastfm", "folder: train, val, test; triples", "", 153_805, 1_808, 12_212),
    Raw("hetrec2011-tag-aware/delicious", "folder: train, val, test; triples", "--protocol ncf",
        290_887, 1_843, 65_877),
    Raw("gc-mc/douban/train.tsv", "two files, tabs, no names", "--test-data {data}/gc-mc/douban/test.tsv",
        136_891, 2_999, 3_000),
    Raw("cross-domain/sport_phone", "folder: train and test", "", 54_256, 4_998, 20_845),
    Raw("cross-domain/phone_sport", "folder: train and test", "", 46_445, 4_998, 13_655),
    Raw("tiktok", "folder: train, valid, test; user item", "", 68_722, 9_308, 6_710),
    Raw("taobao-ehcf", "folder: buy.train, buy.test; names of its own", "data.item=sid --protocol ncf",
        259_771, 48_749, 39_493),
    Raw("taobao-ehcf/cart.csv", "tabs under .csv, a number among the names", "data.item=sid --protocol ncf",
        193_747, 37_689, 34_347),
    Raw("amazon-all-beauty-2023/reviews.jsonl", "JSON lines", "", 10_245, 3_543, 2_998),
    Raw("amazon-musical-instruments-5k/reviews.jsonl", "JSON lines, names of its own", "", 5_050, 1_381, 392),
    Raw("amazon-grocery-time/train.csv", "tabs under .csv", "--protocol ncf", 121_892, 14_681, 8_687),
    Raw("coat", "folder: train and test matrices", "data.format=matrix", 11_600, 290, 300),
    Raw("anime/anime_ratings.dat", "tabs, names of its own", "data.rating=Feedback", 419_943, 4_714, 7_157),
    Raw("anime/anime_history.dat", "tabs, names of its own", "", 520_609, 5_000, 7_390),
    Raw("mind-extract/behaviors.tsv", "MIND impressions", "data.format=mind", 126_245, 3_085, 1_551),
    Raw("frappe/frappe.csv", "tabs under .csv", "", 96_203, 957, 4_082),
    Raw("open-bandit/random_women.csv", "commas, an index without a name",
        "data.user=user_feature_0 data.label=click", 10_000, 2, 29),
)  # fmt: skip
CLICKS = (
    Raw("adult/adult.data", "', ' between fields, no names, a title line in the test",
        "--test-data {data}/adult/adult.test data.label=14 'data.positive=>50K,>50K.'", 48_842),
    Raw("criteo/train_10k.txt", "Criteo's", "", 10_000),
    Raw("criteo/mini_libsvm", "folder: two libSVM files", "", 20_000),
    Raw("frappe/frappe.validation.libfm", "two libFM files", "--test-data {data}/frappe/frappe.test.libfm", 86_582),
    Raw("open-bandit/random_women.csv", "commas, an index without a name", "data.label=click", 10_000),
    Raw("mind-extract/behaviors.tsv", "MIND impressions", "data.format=mind", 126_245),
    Raw("amazon-all-beauty-2023/reviews.jsonl", "JSON lines, ratings as labels",
        "data.label=rating data.positive=4", 10_245),
)  # fmt: skip


def words_of(model: str, raw: Raw, data: Path) -> list[str]:
    """The command of a raw file behind `deeprec`."""
    return ["train", model, "--data", str(data / raw.path), *shlex.split(raw.words.format(data=data))]


def _line(model: str, raw: Raw, data: Path, out: Path) -> str:
    started = time.perf_counter()
    done = CliRunner().invoke(app, [*words_of(model, raw, data), "--out", str(out)])
    if done.exit_code:
        raise SystemExit(f"formats: {raw.path} must train, got\n{done.output}")
    took, card = time.perf_counter() - started, read_card(out)
    figure, value = next(iter(card.metrics.items()))
    shown = shlex.join(words_of(model, raw, Path("DATA"))).replace("DATA/", "")
    return f"| {raw.path} | {raw.layout} | `deeprec {shown}` | {figure} {value:.4f} | {took:.0f} |"


def main() -> None:
    """Run every command and write the page; with names as arguments, only those paths, to the screen."""
    data = Path(os.environ["DEEPREC_DATA"])
    logging.raiseExceptions = False  # each command ends the stream that the next one's log would write to
    lines = []
    for model, group in (("popularity", INTERACTIONS), ("lr", CLICKS)):
        for raw in group:
            if sys.argv[1:] and raw.path not in sys.argv[1:]:
                continue
            with tempfile.TemporaryDirectory() as place:
                lines.append(_line(model, raw, data, Path(place) / "run"))
            print(lines[-1], flush=True)
    if sys.argv[1:]:
        return
    head = [
        "# From a raw file to a result: one command each",
        "",
        "Every command was run as it stands by `python -m bench.formats`, in the data folder. Popularity, and logistic",
        "regression for clicks, stand for any model: `deeprec models` lists them. The figure is the first of the card;",
        "it says that the file was read and split, not how well a model does. Seconds were taken on a shared machine;",
        "large catalogues are measured against 99 sampled items (`--protocol ncf`) to keep the page quick.",
        "",
        "| file | layout | command | figure | seconds |",
        "|---|---|---|---|---|",
    ]
    _RESULT.write_text("\n".join([*head, *lines]) + "\n")


if __name__ == "__main__":
    main()
