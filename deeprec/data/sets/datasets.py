"""Data sets by name: where they are looked for, and how they are read.

A name is looked for in `data_dir`, then in $DEEPREC_DATA, then in the user's cache ($XDG_CACHE_HOME/deeprec/data or
~/.cache/deeprec/data, where `fetch` puts things). Nothing is downloaded unless `fetch` is called.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from deeprec.data.interactions import features
from deeprec.data.interactions.build import Duplicates
from deeprec.data.interactions.domains import Domains
from deeprec.data.interactions.ids import IdMap
from deeprec.data.interactions.interactions import Interactions
from deeprec.data.interactions.layouts import OPTIONS
from deeprec.data.interactions.readers import (
    ncf_split_of_movielens,
    read_fold,
    read_movielens,
    read_parts,
    read_path,
    read_triple,
)
from deeprec.data.interactions.selection import SELECTION, positives
from deeprec.data.reading.errors import did_you_mean, reading
from deeprec.data.reading.files import is_there, parts_of
from deeprec.data.reading.text import OnBad, with_gz
from deeprec.data.sets.coat import read_coat
from deeprec.data.sets.media_sets import film_media, read_tiktok
from deeprec.data.sets.publishers import SOURCES
from deeprec.data.sets.review_sets import read_beauty, read_instruments
from deeprec.data.sets.sequence_sets import pair_reader, read_diginetica, read_grocery, s3rec_reader
from deeprec.data.sets.synthetic import synthetic
from deeprec.data.sets.tag_sets import read_citeulike, read_lastfm_2k, read_tag_split

_log = logging.getLogger("deeprec")

_MOVIELENS_TERMS = (
    "GroupLens: research use; no redistribution without separate permission; no commercial use without "
    "permission; cite Harper & Konstan 2015 (doi 10.1145/2827872)"
)


@dataclass(frozen=True)
class DatasetInfo:
    """What is known about a data set before it is read.

    Args:
        folder: folder below a data directory. files: any of these tells that the data set is there.
        rows, users, items: of the whole data set, train and test.
    """

    name: str
    title: str
    folder: str
    files: tuple[str, ...]
    rows: int
    users: int
    items: int
    terms: str
    homepage: str
    read: Callable[..., Interactions]


def cache_dir() -> Path:
    """Where `fetch` puts data sets: $XDG_CACHE_HOME/deeprec/data, by default ~/.cache/deeprec/data."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "deeprec" / "data"


def search_dirs(data_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """The directories a name is looked for in, first come first served."""
    given = [data_dir, os.environ.get("DEEPREC_DATA"), cache_dir()]
    return [Path(place).expanduser() for place in given if place]


def list_datasets() -> list[DatasetInfo]:
    """Every data set known by name, except `synthetic`, which needs no files."""
    return [_REGISTRY[name] for name in sorted(_REGISTRY)]


def info(name: str) -> DatasetInfo:
    """What is known about `name`; ValueError with the closest name where there is none."""
    if name not in _REGISTRY:
        raise ValueError(
            f"info: a data set must be one of {sorted(_REGISTRY)}, got {name!r}{did_you_mean(name, _REGISTRY)}"
        )
    return _REGISTRY[name]


def is_named(source: str) -> bool:
    """Whether `load` takes this for the name of a data set, and not for a path."""
    return source in (*_REGISTRY, "synthetic")


def find(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """The folder that holds the files of `name`, or None."""
    entry = info(name)
    for place in search_dirs(data_dir):
        folders = [place / entry.folder, *([place] if place.name == entry.folder else [])]
        for folder in folders:
            if any(with_gz(folder / file) for file in entry.files):
                return folder
    return None


def load(
    name_or_path: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None, **options: Any
) -> Interactions:
    """Interactions by name, or from a file or folder.

    Args:
        name_or_path: a name of `list_datasets()`, "synthetic", or a path: a file, files with commas between, or a
            folder whose files are called train, validation and test (see `files.parts_of`). Of several domains with the
            same users: NAME=PATH,NAME=PATH, or a file with `domain`; see `Domains.joined`.
        data_dir: looked in first for a name.
        options: of files (`layouts.OPTIONS`): format; the columns user, item, rating, timestamp (or order), label, tag,
            review and domain by name or by place from 0; separator, quote, missing, header, comment, skip_lines,
            columns; time_format, on_bad and duplicates (see `from_frame`); validation and test, files that become the
            official split. For ml-100k fold ("u1".."u5", "ua", "ub"), for ml-1m media (True: columns plot, abstract and
            poster of the items, as far as the files are there); for synthetic its sizes and seed. With min_rating,
            min_interactions or min_tag_uses rows are selected, see `positives`.
    Raises:
        FileNotFoundError: files are nowhere; the places searched and the way to get them are named.
        ValueError: an unknown name, or content that cannot be read (see `from_frame`). TypeError: an unknown option.
    """
    selection = {key: options.pop(key) for key in SELECTION if key in options}
    if selection:
        return positives(load(name_or_path, data_dir, **options), **selection)
    text = os.fspath(name_or_path)
    if text == "synthetic":
        return synthetic(**options)
    if text in _REGISTRY:
        folder = find(text, data_dir)
        if folder is None:
            places = ", ".join(str(place / _REGISTRY[text].folder) for place in search_dirs(data_dir))
            raise FileNotFoundError(
                f"load: {text} is {' or '.join(_REGISTRY[text].files)} (or .gz), not found in: "
                f"{places}; {_how_to_get(text)}"
            )
        return _call(_REGISTRY[text].read, folder, {"name": text, **options})
    if domains := domain_paths(text):
        parts = {name: load(path, data_dir, **options) for name, path in domains.items()}
        return Domains.of(parts).joined("+".join(domains))
    path = Path(text).expanduser()
    with reading(path, function="load"):
        return _load_path(text, path, options)


def domain_paths(text: str) -> dict[str, str]:
    """Path by name of "NAME=PATH,NAME=PATH"; nothing for another text.

    Raises:
        ValueError: a name twice.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    if is_there(text) or not all(equals and path and re.fullmatch(r"[\w .-]+", name) for name, equals, path in pairs):
        return {}
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise ValueError(f"load: the names of domains must differ, got {text!r}; join the files of one "
                         "domain in a folder of their own")  # fmt: skip
    return {name: path for name, _, path in pairs}


def _load_path(text: str, path: Path, options: dict[str, Any]) -> Interactions:
    parts = {part: options.pop(part) for part in ("validation", "test") if options.get(part) is not None}
    if path.is_dir() and not parts:
        known = _known_set_in(path, options)
        if known is not None:
            return known
    if not is_there(path):
        raise _not_there(text, path)
    files = parts_of(text, **parts)
    if files.is_one:
        return _call(read_path, files.train[0], options)
    name = options.pop("name", path.name.removesuffix(".gz") if "," not in text else files.train[0].name)
    return _call(lambda _, **rest: read_parts(*files, name=name, **rest), path, options)


def _not_there(text: str, path: Path) -> Exception:
    names = [*_REGISTRY, "synthetic"]
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    if path.parent != Path() or path.suffix:
        hint = did_you_mean(path.name, [*siblings, *names])
        return FileNotFoundError(f"load: no file or folder {text}{hint}; known names are {sorted(names)}")
    return ValueError(
        f"load: a data set must be one of {sorted(names)} or a path, got {text!r}"
        f"{did_you_mean(text, [*names, *siblings])}"
    )


def _call(read: Callable[..., Interactions], path: Path, options: dict[str, Any]) -> Interactions:
    known = {"name", "prefix", "duplicates", "fold", "media", "validation", "test", *OPTIONS}
    for option in options:
        if option not in known:
            raise TypeError(
                f"load: an option must be one of {sorted(known)}, got {option!r}{did_you_mean(option, known)}"
            )
    try:
        return read(path, **options)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        option = str(error).rpartition("argument ")[2]
        raise TypeError(f"load: {path.name} is read without the option {option}; leave it out") from None


def _how_to_get(name: str) -> str:
    if name in SOURCES:
        return f"run `deeprec data fetch {name}`, or pass data_dir or set DEEPREC_DATA"
    return f"get it from {_REGISTRY[name].homepage} and pass data_dir or set DEEPREC_DATA"


def _known_set_in(folder: Path, options: dict[str, Any]) -> Interactions | None:
    """A folder that holds one known data set, or one NCF triple; none where a format says how its files are read."""
    if "format" in options:
        return None
    for entry in list_datasets():
        if folder.name == Path(entry.folder).name and any(with_gz(folder / file) for file in entry.files):
            return _call(entry.read, folder, {"name": entry.name, **options})
    triples = sorted({path.name.partition(".train.rating")[0] for path in folder.glob("*.train.rating*")})
    return (
        _call(read_triple, folder, {"name": triples[0], "prefix": triples[0], **options}) if len(triples) == 1 else None
    )


def _first_file(folder: Path, names: tuple[str, ...]) -> Path:
    return next(path for path in (with_gz(folder / name) for name in names) if path)


def _with_features(
    data: Interactions,
    folder: Path,
    user: tuple[str, Callable[[Path], pl.DataFrame]],
    item: tuple[str, Callable[[Path], pl.DataFrame]],
) -> Interactions:
    def aligned(file: str, read: Callable[[Path], pl.DataFrame], ids: IdMap) -> pl.DataFrame | None:
        path = with_gz(folder / file)
        return features.align(read(path), ids) if path else None

    return replace(data, user_features=aligned(*user, data.user_ids), item_features=aligned(*item, data.item_ids))


def _read_ml_1m(
    folder: Path, *, name: str, on_bad: OnBad = "raise", duplicates: Duplicates = "latest", media: bool = False
) -> Interactions:
    data = read_movielens(_first_file(folder, _ML_1M_FILES), name=name, on_bad=on_bad, duplicates=duplicates)
    data = _with_features(data, folder, ("users.dat", features.users_1m), ("movies.dat", features.movies_1m))
    if media:
        films = features.align(film_media(folder), data.item_ids)
        known = data.item_features
        data = replace(data, item_features=films if known is None else known.hstack(films.drop("item_id")))
    for place in (folder.parent / "ncf", folder):
        test, negative = (with_gz(place / f"ml-1m.{part}") for part in ("test.rating", "test.negative"))
        if test and negative:
            try:
                return replace(data, official=ncf_split_of_movielens(data, test, negative))
            except ValueError as error:  # another edition of the ratings: usable, but not with this split
                _log.warning("%s: the NCF authors' split is left out: %s", name, error)
    return data


def _read_ml_100k(
    folder: Path, *, name: str, fold: str | None = None, on_bad: OnBad = "raise", duplicates: Duplicates = "latest"
) -> Interactions:
    if fold is None:
        data = read_movielens(_first_file(folder, ("u.data",)), name=name, on_bad=on_bad, duplicates=duplicates)
    else:
        base, test = (with_gz(folder / f"{fold}.{part}") for part in ("base", "test"))
        folds = ["u1", "u2", "u3", "u4", "u5", "ua", "ub"]
        if fold not in folds:
            raise ValueError(f"load: fold must be one of {folds}, got {fold!r}{did_you_mean(fold, folds)}")
        if base is None or test is None:
            raise FileNotFoundError(f"load: {fold}.base and {fold}.test must both be in {folder}; fetch ml-100k again")
        data = read_fold(base, test, name=f"{name}/{fold}", on_bad=on_bad, duplicates=duplicates)
    return _with_features(data, folder, ("u.user", features.users_100k), ("u.item", features.items_100k))


def _read_douban(
    folder: Path, *, name: str, on_bad: OnBad = "raise", duplicates: Duplicates = "latest"
) -> Interactions:
    train, test = (with_gz(folder / f"{part}.tsv") for part in ("train", "test"))
    if train is None or test is None:
        raise FileNotFoundError(f"load: train.tsv and test.tsv (or .gz) must both be in {folder}; get them both")
    return read_fold(train, test, name=name, on_bad=on_bad, duplicates=duplicates, has_time=False)


def _cross_reader(first: str, second: str) -> Callable[..., Interactions]:
    def read(folder: Path, *, name: str, on_bad: OnBad = "raise", duplicates: Duplicates = "latest") -> Interactions:
        parts = {}
        for domain, other in ((first, second), (second, first)):
            train, test = (with_gz(folder / f"{domain}_{other}" / f"{part}.txt") for part in ("train", "test"))
            if train is None or test is None:
                raise FileNotFoundError(
                    f"load: {domain}_{other}/train.txt and test.txt (or .gz) must both be in {folder}; get them both"
                )
            columns: dict[str, Any] = {"user": 0, "item": 1, "header": False, "integers": True}
            data = read_parts([train], None, test, name=domain, on_bad=on_bad, duplicates=duplicates, **columns)
            parts[domain] = replace(data, ratings=None)
        return Domains.of(parts).joined(name)

    return read


def _triple_reader(prefix: str) -> Callable[..., Interactions]:
    def read(folder: Path, **options: Any) -> Interactions:
        return read_triple(folder, prefix, **options)

    return read


_ML_1M_FILES = ("ratings.dat", "ratings_rank.dat")
_HETREC = "https://grouplens.org/datasets/hetrec-2011/"
_NCF = "https://github.com/hexiangnan/neural_collaborative_filtering"
_DEEP_CF = "https://github.com/familyld/DeepCF"
_CROSS = "https://github.com/cjx96/DisenCDR"
_S3REC = "https://github.com/RUCAIBox/CIKM2020-S3Rec"
_AMAZON_TERMS = "Amazon reviews (McAuley, UCSD): academic research"

# fmt: off
_REGISTRY = {
    entry.name: entry
    for entry in (
        DatasetInfo("ml-100k", "MovieLens 100K: ratings 1-5 with time, users, movies, folds",
                    "ml-100k", ("u.data",), 100_000, 943, 1_682, _MOVIELENS_TERMS,
                    "https://grouplens.org/datasets/movielens/100k/", _read_ml_100k),
        DatasetInfo("ml-1m", "MovieLens 1M: ratings 1-5 with time, users, movies; NCF's split where ncf/ is there",
                    "ml-1m", _ML_1M_FILES, 1_000_209, 6_040, 3_706, _MOVIELENS_TERMS,
                    "https://grouplens.org/datasets/movielens/1m/", _read_ml_1m),
        DatasetInfo("citeulike-a", "CiteULike-a: libraries of articles, tags of the articles",
                    "citeulike-a", ("users.dat",), 204_986, 5_551, 16_980,
                    "published for research; cite Wang, Chen and Li 2013",
                    "https://github.com/js05212/citeulike-a", read_citeulike),
        DatasetInfo("coat", "Coat: ratings 1-5 that users chose to give, and ratings of items shown at random",
                    "coat", ("train.ascii",), 11_600, 290, 300,
                    "Schnabel et al. 2016: research", "https://www.cs.cornell.edu/~schnabts/mnar/", read_coat),
        DatasetInfo("delicious-tags", "HetRec 2011 Delicious: tags of bookmarks, with a published split",
                    "hetrec2011-tag-aware/delicious", ("train.txt",), 290_887, 1_843, 65_877,
                    "HetRec 2011: non-commercial use", _HETREC, read_tag_split),
        DatasetInfo("lastfm-tags", "HetRec 2011 Last.fm: tags of artists, with a published split",
                    "hetrec2011-tag-aware/lastfm", ("train.txt",), 153_805, 1_808, 12_212,
                    "Last.fm: non-commercial use; cite HetRec 2011", _HETREC, read_tag_split),
        DatasetInfo("lastfm-2k", "HetRec 2011 Last.fm: all tags of artists",
                    "hetrec2011-lastfm-2k", ("user_taggedartists.dat",), 186_479, 1_892, 12_523,
                    "Last.fm: non-commercial use; cite HetRec 2011", _HETREC, read_lastfm_2k),
        DatasetInfo("douban", "Douban: ratings 1-5 of 3,000 users and films with the split of GC-MC",
                    "gc-mc/douban", ("train.tsv",), 136_891, 2_999, 3_000,
                    "terms not stated by the source: research only",
                    "https://github.com/riannevdberg/gc-mc", _read_douban),
        DatasetInfo("ncf-ml-1m", "MovieLens 1M as the NCF authors' triple, 99 negatives a user",
                    "ncf", ("ml-1m.train.rating",), 1_000_209, 6_040, 3_706, _MOVIELENS_TERMS,
                    _NCF, _triple_reader("ml-1m")),
        DatasetInfo("ncf-lastfm", "Last.fm as an NCF triple (DeepCF), 99 negatives a user",
                    "ncf", ("lastfm.train.rating",), 69_149, 1_741, 2_665,
                    "terms not stated by the source: research only", _DEEP_CF, _triple_reader("lastfm")),
        DatasetInfo("ncf-amusic", "Amazon Music as an NCF triple (DeepCF), 99 negatives a user",
                    "ncf", ("AMusic.train.rating",), 46_087, 1_776, 12_929,
                    _AMAZON_TERMS, _DEEP_CF, _triple_reader("AMusic")),
        DatasetInfo("tiktok", "TikTok: videos with vectors of picture and sound, with a published split (DiffMM)",
                    "tiktok", ("train.txt",), 68_722, 9_308, 6_710,
                    "TikTok challenge data: research use, no redistribution; cite Jiang et al. 2024 (DiffMM)",
                    "https://github.com/HKUDS/DiffMM", read_tiktok),
        DatasetInfo("cross-sport-phone", "Amazon: the same users in two domains, sport and phone (DisenCDR)",
                    "cross-domain", ("sport_phone/train.txt",), 100_701, 4_998, 34_500,
                    _AMAZON_TERMS, _CROSS, _cross_reader("sport", "phone")),
        DatasetInfo("cross-electronic-phone", "Amazon: the same users in two domains, electronic and phone (DisenCDR)",
                    "cross-domain", ("electronic_phone/train.txt",), 171_080, 3_325, 56_415,
                    _AMAZON_TERMS, _CROSS, _cross_reader("electronic", "phone")),
        DatasetInfo("cross-electronic-cloth", "Amazon: the same users in two domains, electronic and cloth (DisenCDR)",
                    "cross-domain", ("electronic_cloth/train.txt",), 358_298, 15_761, 100_228,
                    _AMAZON_TERMS, _CROSS, _cross_reader("electronic", "cloth")),
        DatasetInfo("amazon-beauty-reviews", "Amazon All Beauty 2023: ratings 1-5 with times and the texts of reviews",
                    "amazon-all-beauty-2023", ("reviews.jsonl",), 9_829, 3_543, 2_998, _AMAZON_TERMS,
                    "https://amazon-reviews-2023.github.io", read_beauty),
        DatasetInfo("amazon-instruments-reviews", "Amazon Musical Instruments, a half: ratings with texts of reviews",
                    "amazon-musical-instruments-5k", ("reviews.jsonl",), 5_050, 1_381, 392, _AMAZON_TERMS,
                    "https://jmcauley.ucsd.edu/data/amazon/", read_instruments),
        DatasetInfo("sasrec-ml-1m", "MovieLens 1M as SASRec's file: histories in order, items rated five times or more",
                    "sasrec", ("ml-1m.txt",), 999_611, 6_040, 3_416, _MOVIELENS_TERMS,
                    "https://github.com/kang205/SASRec", pair_reader("ml-1m.txt")),
        DatasetInfo("bert4rec-beauty", "Amazon Beauty as BERT4Rec's file: histories in order",
                    "bert4rec", ("beauty.txt",), 353_962, 40_226, 54_542, _AMAZON_TERMS,
                    "https://github.com/FeiSun/BERT4Rec", pair_reader("beauty.txt")),
        DatasetInfo("s3rec-beauty", "Amazon Beauty as S3-Rec's file: histories in order, attributes of items",
                    "s3rec", ("Beauty.txt",), 198_502, 22_363, 12_101, _AMAZON_TERMS, _S3REC, s3rec_reader("Beauty")),
        DatasetInfo("s3rec-sports", "Amazon Sports as S3-Rec's file: histories in order, attributes of items",
                    "s3rec", ("Sports_and_Outdoors.txt",), 296_337, 35_598, 18_357, _AMAZON_TERMS,
                    _S3REC, s3rec_reader("Sports_and_Outdoors")),
        DatasetInfo("s3rec-lastfm", "Last.fm as S3-Rec's files: histories in order, attributes, 99 negatives a user",
                    "s3rec", ("LastFM.txt",), 52_551, 1_090, 3_646,
                    "Last.fm: non-commercial use; cite HetRec 2011", _S3REC, s3rec_reader("LastFM")),
        DatasetInfo("diginetica", "Diginetica: sessions in order of time, test sessions as SR-GNN prepares them",
                    "session/diginetica", ("all_train_seq.txt",), 982_961, 202_633, 43_097,
                    "CIKM Cup 2016: terms not stated by the source, research only",
                    "https://github.com/CCIIPLab/GCE-GNN", read_diginetica),
        DatasetInfo("amazon-grocery", "Amazon Grocery: histories with times, categories of items",
                    "amazon-grocery-time", ("train.csv",), 121_892, 14_681, 8_687, _AMAZON_TERMS,
                    "https://github.com/THUwangcy/ReChorus", read_grocery),
    )
}
# fmt: on
