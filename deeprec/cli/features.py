"""`deeprec features extract`."""

from __future__ import annotations

import importlib
import os
import warnings
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import polars as pl
import typer

from deeprec._files import make_folder, replacing
from deeprec._suggest import did_you_mean, listed
from deeprec.cli.console import console, progress, rate, say, seconds, table
from deeprec.data.media.decoders import AudioDecoder, Decoder, ImageDecoder, TextDecoder, VideoDecoder
from deeprec.data.media.errors import MediaError
from deeprec.data.media.extract import extract as extract_vectors
from deeprec.data.media.extract import report, text_weights, vector_cache, vector_table, write_vectors
from deeprec.data.media.features import FEATURES, Encoder
from deeprec.data.media.files import MediaFiles
from deeprec.data.reading.tables import read_table

if TYPE_CHECKING:
    from deeprec.data.media.cache import ContentCache

KINDS = ("image", "audio", "video", "text")
ON_BAD = ("zeros", "raise")
_LARGEST_TABLE = 1 << 31  # bytes of vectors that are written as Parquet too
_SHOWN = 5  # bad files on the screen
_ENDINGS = {
    "image": ("jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff", "avif"),
    "audio": ("wav", "flac", "ogg", "mp3", "opus", "aiff"),
    "video": ("mp4", "webm", "mkv", "mov", "avi", "mpg", "mpeg", "m4v"),
    "text": ("txt", "md", "html"),
}

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def features() -> None:
    """Vectors of the media of items (image, audio, video, text): deeprec features extract."""


@app.command()
def extract(
    items: Annotated[Path, typer.Option("--items", help="The table of items: .parquet, .csv, .tsv or .jsonl.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write to; another run adds to it.")],
    column: Annotated[str, typer.Option("--column", help="Of the table: the files, or the texts themselves.")],
    kind: Annotated[
        str | None, typer.Option("--kind", help=f"{', '.join(KINDS)}; by the endings of the files otherwise.")
    ] = None,
    media: Annotated[
        Path | None, typer.Option("--media", help="The folder or .tar of the files; that of the table otherwise.")
    ] = None,
    encoder: Annotated[
        Path | None, typer.Option("--encoder", help="A folder with a saved encoder; simple features without training.")
    ] = None,
    item: Annotated[str, typer.Option("--id", help="The column with the ids of the items.")] = "item_id",
    size: Annotated[int, typer.Option("--size", help="Of images and frames: height and width.")] = 64,
    frames: Annotated[int, typer.Option("--frames", help="Of a video.")] = 8,
    audio_rate: Annotated[int, typer.Option("--rate", help="Samples a second of sounds.")] = 16_000,
    audio_seconds: Annotated[float, typer.Option("--seconds", help="Of a sound, from its beginning.")] = 10.0,
    workers: Annotated[int | None, typer.Option("--workers", help="Threads that decode; one a core.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Of the encoder.")] = 32,
    on_bad: Annotated[
        str, typer.Option("--on-bad", help="A bad file: zeros and false in COLUMN_ok (the default), or raise.")
    ] = "zeros",
    device: Annotated[str, typer.Option("--device", help="Of --encoder: auto, cpu, cuda, cuda:N.")] = "auto",
) -> None:
    """Write a vector for each item, made of its image, sound, video or text.

    In --out: COLUMN.parquet (the ids, COLUMN_vector, COLUMN_ok), COLUMN.npy (the same vectors in the order of the
    table), COLUMN_bad.csv (the files that could not be decoded, why, and what to do), and cache, the vectors by the
    content of the files: another run decodes only what is new, and one that was interrupted goes on.

    Such as: deeprec features extract --items items.parquet --column cover --out features

    Then: items.join(pl.read_parquet("features/cover.parquet"), on="item_id"), with a column
    Vector("cover_vector", WIDTH).
    """
    if Path(column).name != column:
        raise ValueError(
            f"--column must be a name without a path, got {column!r}; rename the column, it names the files"
        )
    keys, ids = _read(items, column, item)
    kind = _kind(keys, column, kind)
    if on_bad not in ON_BAD:
        raise ValueError(f"--on-bad must be one of {', '.join(ON_BAD)}, got {on_bad!r}; {did_you_mean(on_bad, ON_BAD)}")
    decoder = _decoder(kind, size, frames, audio_rate, audio_seconds)
    made = FEATURES[kind](decoder) if encoder is None else _saved(encoder, decoder, device)
    files = None if kind == "text" and media is None else MediaFiles(media if media is not None else items.parent)
    make_folder(out)
    count, begin = workers if workers is not None else os.cpu_count() or 1, perf_counter()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about metadata; what matters is an error
    with vector_cache(out / "cache", made) as cache:
        with progress() as bar:
            task = bar.add_task(f"{kind} features", total=len(keys))
            done = extract_vectors(ids.to_list(), keys, made, files, cache, workers=count, batch_size=batch_size,
                                   on_bad="raise" if on_bad == "raise" else "zeros",
                                   on_progress=lambda number: bar.update(task, completed=number))  # fmt: skip
        took = perf_counter() - begin
        _write(out, column, ids, done.rows, cache, made)
    with replacing(out / f"{column}_bad.csv") as file:
        report(done.bad).write_csv(file)
    known = int((done.rows >= 0).sum())
    say(("done", "green"), f": {known:,} of {len(keys):,} items have a vector of {made.width} numbers; ",
        f"{done.num_new:,} files were new, {rate(len(keys) / max(took, 1e-9))}, {seconds(took)}")  # fmt: skip
    if done.num_missing:
        say(f"{done.num_missing:,} items have no {kind}: zeros, {column}_ok is false")
    if done.bad:
        _show(done.bad, out / f"{column}_bad.csv")
    joined = f'items.join(pl.read_parquet("{out / column}.parquet"), on="{item}")'
    say(f'Next: {joined}, Vector("{column}_vector", {made.width})')


def _read(path: Path, column: str, item: str) -> tuple[list[str | None], pl.Series]:
    """The column's values as text, and the ids."""
    frame = read_table(path).frame
    for name in (column, item):
        if name not in frame.columns:
            raise ValueError(
                f"features: {path} must have a column {name}, got {listed(frame.columns)}; "
                f"{did_you_mean(name, frame.columns)}"
            )
    values, ids = frame.get_column(column), frame.get_column(item)
    if values.dtype != pl.String:
        raise ValueError(f"features: {column} must be text, paths or texts, got {values.dtype}; name another --column")
    if ids.null_count() or ids.is_duplicated().any():
        raise ValueError(
            f"features: {item} must be there once for each row of {path}; drop rows without or with one twice"
        )
    return values.to_list(), ids


def _kind(keys: list[str | None], column: str, kind: str | None) -> str:
    """What the files are, by the endings of most of them where it is not given."""
    if kind is not None:
        if kind not in KINDS:
            raise ValueError(f"--kind must be one of {', '.join(KINDS)}, got {kind!r}; {did_you_mean(kind, KINDS)}")
        return kind
    endings = [key.rpartition(".")[2].lower() for key in keys[:1000] if key]
    counts = {name: sum(ending in known for ending in endings) for name, known in _ENDINGS.items()}
    best = max(counts, key=lambda name: counts[name])
    if 2 * counts[best] <= len(endings):
        raise ValueError(f"features: the values of {column} do not say what they are; add --kind {'|'.join(KINDS)}")
    return best


def _decoder(kind: str, size: int, frames: int, audio_rate: int, audio_seconds: float) -> Decoder:
    if kind == "image":
        return ImageDecoder((size, size))
    if kind == "audio":
        return AudioDecoder(audio_rate, audio_seconds)
    return VideoDecoder(frames, (size, size)) if kind == "video" else TextDecoder()


def _saved(folder: Path, decoder: Decoder, device: str) -> Encoder:
    """An encoder that was saved; only now torch is needed."""
    if isinstance(decoder, TextDecoder):
        raise ValueError("features: a saved encoder of texts takes ids of a vocabulary; leave out --encoder")
    from deeprec.batches.media import ModuleEncoder

    module: Any = importlib.import_module("deeprec.nn.media_encoder").MediaEncoder.load(folder)
    return ModuleEncoder(module, decoder, device)


def _write(
    out: Path, column: str, ids: pl.Series, rows: np.ndarray[Any, Any], cache: ContentCache, encoder: Encoder
) -> None:
    weights = text_weights(out / f"{column}_words.npy", encoder, rows, cache)
    path, parquet = out / f"{column}.npy", out / f"{column}.parquet"
    write_vectors(path, rows, cache, weights)
    if 4 * len(rows) * encoder.width > _LARGEST_TABLE:
        say(f"{parquet.name} is not written, its vectors take over 2 GB; row i of {path} is row i of the items")
        return
    with replacing(parquet) as file:
        vector_table(ids, column, path, rows >= 0).write_parquet(file)


def _show(bad: list[MediaError], path: Path) -> None:
    rows = table("item", "file", "fault", title=f"{len(bad):,} could not be decoded (zeros; all in {path})")
    for each in bad[:_SHOWN]:
        rows.add_row(each.item, each.path, each.what)
    console().print(rows)
