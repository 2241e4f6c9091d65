"""Sequences, texts, vectors and media: declared, read, encoded, converted, saved; refused where nothing takes them."""

from __future__ import annotations

import gzip
import itertools
import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from deeprec.data.clicks.log import ClickLog, Split, convert, in_memory
from deeprec.data.columns.encoder import Encoder
from deeprec.data.columns.inputs import Encoded, Field, Inputs, SequenceField, TextField, VectorField
from deeprec.data.columns.kinds import Bag, Categorical, Cross, Image, Numeric, Sequence, Text, Vector
from deeprec.data.columns.rows import join, take
from deeprec.data.columns.schema import FeatureSchema
from deeprec.data.columns.schema_inference import infer
from deeprec.data.columns.tokens import token_hashes
from deeprec.data.reading.hashing import hash_text
from deeprec.data.reading.sources import open_source
from deeprec.models import DeepFM
from deeprec.registry import create

FRAME = pl.DataFrame(
    {
        "clicked": [1, 0, 0, 1],
        "item": ["a", "b", "c", "a"],
        "viewed": [["b", "a"], [], ["c", "z", "a", "b"], None],
        "title": ["Good dog", None, "DOG, good dog", "Ünï 9"],
        "plot": ["a\nb", "", None, "ü"],
        "visual": [[1.0, 2.0], [0.5, -1.0], None, [3.0, 4.0]],
        "x": [1, 2, 3, 4],
        "y": [0.5, None, 1.0, 2.0],
        "poster": ["1.jpg", None, "", "no/2.jpg"],
    }
)
SCHEMA = FeatureSchema(
    (
        Categorical("item"),
        Sequence("viewed", vocabulary="item", length=3),
        Sequence("seen", column="viewed", min_count=2),
        Text("title"),
        Text("grams", tokens="trigrams", num_buckets=1000, length=4, column="title"),
        Text("plot", tokens="raw"),
        Vector("visual", 2),
        Vector("pair", columns=("x", "x2")),
        Image("poster", folder="posters"),
    ),
    label="clicked",
)


def rows_of(frame: pl.DataFrame, schema: FeatureSchema) -> Any:
    return next(open_source(frame).chunks(schema.columns_to_read()))


def encoded(frame: pl.DataFrame = FRAME, schema: FeatureSchema = SCHEMA) -> tuple[Encoder, Encoded]:
    chunk = rows_of(frame.with_columns(x2=pl.col("x") * 2) if "x" in frame.columns else frame, schema)
    encoder = Encoder.fit(schema, [(chunk, None)])
    return encoder, encoder.encode(chunk)


def bag(data: Encoded, name: str) -> list[list[int]]:
    ids, offsets, _ = data.bags[name]
    return [ids[start:end].tolist() for start, end in itertools.pairwise(offsets)]


def test_each_kind_is_what_it_says() -> None:
    encoder, data = encoded()
    a, b, c = (int(encoder.ids_of("item", [value])[0]) for value in "abc")
    assert sorted((a, b, c)) == [1, 2, 3]
    assert a == 1
    assert data.ids[:, 0].tolist() == [a, b, c, a]
    assert bag(data, "viewed") == [[b, a], [], [0, a, b], []]  # the last three, in order; z is unknown
    assert [len(row) for row in bag(data, "seen")] == [2, 0, 4, 0]
    title = bag(data, "title")
    assert title[0] == title[2][1:]
    assert title[1] == []
    assert len(title[3]) == 2
    assert [len(row) for row in bag(data, "grams")] == [4, 0, 4, 4]  # #go goo ood od# of eight
    assert data.bags["plot"].texts() == ["a\nb", "", "", "ü"]
    assert data.bags["poster"].texts() == ["1.jpg", "", "", "no/2.jpg"]
    assert data.values.tolist() == [[1, 2, 1, 2], [0.5, -1, 2, 4], [0, 0, 3, 6], [3, 4, 4, 8]]
    inputs = encoder.inputs
    assert inputs.fields == (Field("item", 4),)
    assert inputs.sequences == (
        SequenceField("viewed", 4, 3, "item"),
        SequenceField("seen", 3),
        SequenceField("title", 5),
        SequenceField("grams", 1000, 4),
    )
    assert inputs.texts == (TextField("plot"), TextField("poster", "image", "posters"))
    assert inputs.vectors == (VectorField("visual", 2), VectorField("pair", 2))
    assert inputs.num_values == 4
    assert inputs.columns_of("pair") == slice(2, 4)
    assert list(data.bags) == [column.name for column in inputs.compressed]
    assert take(data, np.array([3, 0])).bags["plot"].texts() == ["ü", "a\nb"]


def test_inputs_and_schema_go_through_json_and_yaml() -> None:
    encoder, _ = encoded()
    assert Inputs.from_dict(encoder.inputs.as_dict()) == encoder.inputs
    assert FeatureSchema.from_yaml(SCHEMA.to_yaml()) == SCHEMA
    unlabelled = FeatureSchema((Categorical("a"),), label=None)
    assert FeatureSchema.from_yaml(unlabelled.to_yaml()) == unlabelled
    # what older readers know is written as they know it
    old = Inputs((Field("a", 2),))
    assert set(old.as_dict()) == {"fields", "numerics", "bags"}
    assert Inputs.from_dict(old.as_dict()) == old


def test_an_encoder_of_all_kinds_saves_and_loads(tmp_path: Path) -> None:
    encoder, data = encoded()
    encoder.save(tmp_path)
    loaded = Encoder.load(tmp_path)
    assert loaded.inputs == encoder.inputs
    again = loaded.encode(rows_of(FRAME.with_columns(x2=pl.col("x") * 2), SCHEMA))
    assert (again.values == data.values).all()
    assert all(bag(again, name) == bag(data, name) for name in data.bags)


@pytest.mark.parametrize("form", ["frame", "parquet"])
def test_a_converted_log_holds_all_kinds(form: str, tmp_path: Path) -> None:
    frame = FRAME.with_columns(x2=pl.col("x") * 2)
    source: Any = frame
    if form == "parquet":
        source = tmp_path / "log.parquet"
        frame.write_parquet(source)
    split = Split("tail", (1.0, 0.0, 0.0))
    convert(source, SCHEMA, tmp_path / "log", split=split)
    stored, held = ClickLog.open(tmp_path / "log").parts["train"], in_memory(source, SCHEMA, split).parts["train"]
    for part in (stored, held):
        (batch,) = part.batches(10)
        _, data = encoded()
        assert (batch.values == data.values).all()
        assert list(batch.bags) == list(data.bags)
        assert all(bag(batch, name) == bag(data, name) for name in data.bags)


def test_separated_text_holds_sequences_and_vectors_of_columns_only(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("label,viewed,x,y,title\n1,b|a|c,1,2,hello\n0,,3,4,\n")
    schema = FeatureSchema((Sequence("viewed", length=2), Vector("v", columns=("x", "y"))))
    chunk = next(open_source(path).chunks(schema.columns_to_read()))
    encoder = Encoder.fit(schema, [(chunk, None)])
    data = encoder.encode(chunk)
    assert [len(row) for row in bag(data, "viewed")] == [2, 0]
    assert data.values.tolist() == [[1, 2], [3, 4]]
    for feature in (Text("title"), Image("title"), Vector("x", 1)):
        with pytest.raises(TypeError, match=r"is separated text, .*; '(title|x)' is declared a text, a file or a v"):
            open_source(path).chunks(FeatureSchema((feature,)).columns_to_read())


def python_tokens(text: str, tokens: str) -> list[str]:
    text = text.lower()
    if tokens == "characters":
        return list(text)
    words = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text).split(" ")
    words = [word for word in words if word]
    if tokens == "words":
        return words
    return [f"#{word}#"[at : at + 3] for word in words for at in range(len(word))]


TEXTS = ["", "a", "Good dog!", "x\x00y", "naïve ΣΑΣ 北京 कमल", "  ", "don't 3.14", "😀 ok", "İstanbul", "#a#"]


@pytest.mark.parametrize("batch", [1, 7, 1 << 22])
@pytest.mark.parametrize("tokens", ["words", "trigrams", "characters"])
def test_tokens_are_those_of_a_plain_loop(tokens: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeprec.data.columns.tokens._BATCH", batch)
    for texts in (TEXTS, TEXTS[::-1], ["a"], [""], []):
        offsets, hashes, _ = token_hashes(pl.Series(texts, dtype=pl.String), tokens)
        expected = [python_tokens(text, tokens) for text in texts]
        assert offsets.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
        flat = [token for row in expected for token in row]
        assert hashes.tolist() == hash_text(pl.Series(flat, dtype=pl.String)).tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sequence("a", vocabulary="b", num_buckets=3), "the ids are those of 'b'; set min_count"),
        (lambda: Sequence("a", length=0), "length must lie in"),
        (lambda: Text("a", tokens="word"), "tokens must be one of words, trigrams, .*did you mean 'words'"),
        (lambda: Text("a", tokens="raw", num_buckets=3), "tokens 'raw' has no ids"),
        (lambda: Vector("a"), "width is required, the numbers in each list of 'a'"),
        (lambda: Vector("a", 3, columns=("x",)), "columns are one number each; drop width"),
        (lambda: Vector("a", 3, missing="mean"), "missing must be one of zeros, raise; got 'mean'"),
        (lambda: Image("a", folder=Path("x")), "folder must be text"),
        (lambda: FeatureSchema((Sequence("a", vocabulary="itme"), Categorical("item"))), "did you mean 'item'"),
        (
            lambda: FeatureSchema((Categorical("a"), Text("t"), Cross(("a", "t"), 5))),
            "'t' must be categorical, .*got text",
        ),
        (lambda: FeatureSchema((Bag("a", ","), Sequence("b", column="a"))), "must have the same separators"),
        (lambda: Sequence("a", pooling="max"), "pooling must be one of sum, mean"),
        (lambda: Sequence("a", parallel_to="a"), "parallel_to must be another sequence"),
        (lambda: FeatureSchema((Sequence("a", parallel_to="c"), Sequence("d"))), "must be a sequence of the schema"),
        (
            lambda: FeatureSchema((Sequence("a", length=3), Sequence("b", parallel_to="a"))),
            "length must be that of 'a'",
        ),
        (
            lambda: FeatureSchema((Sequence("a"), Sequence("b", parallel_to="a"), Sequence("c", parallel_to="b"))),
            "parallel_to must be a sequence that is parallel to none, got 'b'; take 'a'",
        ),
        (lambda: FeatureSchema((Vector("v", columns=("label", "x")),)), "Vector 'v' reads the label"),
        (lambda: FeatureSchema((Categorical("a"),), label=None, positive_from=1), "name its column"),
        (lambda: in_memory(FRAME, FeatureSchema((Categorical("item"),), label=None)), "must have a label"),
    ],
)
def test_what_contradicts_itself_is_refused(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pl.Series([[1.0], [1.0, 2.0], [1.0, 2.0]]), "row 0: v must be a list of 2 finite numbers, got"),
        (pl.Series([[1.0, 2.0], [np.nan, 2.0], [1.0, 2.0]]), "row 1: v must be a list of 2 finite numbers"),
        (pl.Series([[1.0, 2.0], [1e300, 2.0], [1.0, 2.0]]), "row 1: v must be a list of 2 finite numbers"),
        (pl.Series([[1.0, 2.0], [1.0, 2.0], None]), "v, row 2 .*a vector of 2 finite numbers is required, got none"),
        (pl.Series([1.0, 2.0, 3.0]), "'v' of frame must hold lists of 2 numbers, got Float64"),
    ],
)
def test_a_vector_must_be_whole(column: pl.Series, message: str) -> None:
    schema = FeatureSchema((Vector("v", 2, missing="raise"),))
    frame = pl.DataFrame({"label": [0, 1, 0], "v": column})
    with pytest.raises((ValueError, TypeError), match=message):
        in_memory(frame, schema, Split("tail", (1.0, 0.0, 0.0)))


def test_parallel_sequences_are_cut_alike_and_must_be_as_long() -> None:
    schema = FeatureSchema(
        (Sequence("items", length=2), Sequence("kinds", length=2, parallel_to="items", pooling="sum")), label=None
    )
    assert FeatureSchema.from_yaml(schema.to_yaml()) == schema
    frame = pl.DataFrame({"items": [["a", "b", "c"], []], "kinds": [["x", "y", "z"], []]})
    encoder, rows = encoded(frame, schema)
    assert rows.bags["items"].offsets.tolist() == rows.bags["kinds"].offsets.tolist() == [0, 2, 2]
    assert encoder.inputs.sequences[1] == SequenceField("kinds", 4, 2, "", "items", "sum")
    assert Inputs.from_dict(encoder.inputs.as_dict()) == encoder.inputs
    uneven = frame.with_columns(kinds=pl.Series([["x", "y", "z"], ["x"]]))
    with pytest.raises(ValueError, match=r"kinds, row 1 .*as many entries as in 'items'.*are required, 0, got 1"):
        list(encoder.stream(uneven))


def test_half_a_vector_of_columns_is_refused() -> None:
    frame = pl.DataFrame({"label": [0, 1], "x": [1.0, None], "y": [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"v, row 1 .*got nan"):
        in_memory(frame, FeatureSchema((Vector("v", columns=("x", "y")),)), Split("tail", (1.0, 0.0, 0.0)))


@pytest.mark.parametrize("model", ["lr", "fm", "dnn", "wide-deep", "deepfm", "nfm", "afm", "dcn-v2"])
def test_click_models_refuse_other_kinds_by_name(model: str) -> None:
    encoder, _ = encoded()
    with pytest.raises(ValueError, match=r"take the kinds .*sequence .*'poster' \(image\), 'visual'"):
        create(model).build(encoder.inputs)


def test_a_click_model_says_so_before_training() -> None:
    frame = pl.DataFrame({"label": [0, 1] * 20, "c": ["a", "b"] * 20, "v": [[1.0], [2.0]] * 20})
    with pytest.raises(ValueError, match=r"'v' .*declare .* a vector as numerics"):
        DeepFM(epochs=1).fit(frame, FeatureSchema((Categorical("c"), Vector("v", 1))))


def test_what_cannot_be_told_is_left_to_the_reader() -> None:
    drafted = infer(FRAME, label="clicked")
    assert {type(feature) for feature in drafted.features} <= {Categorical, Numeric, Bag}
    assert "declare `vector: visual` with `width: 2`" in drafted.notes["visual"]
    assert "`sequence: viewed`" in drafted.notes["viewed"]


def shared(name: str) -> Path:
    path = Path(os.environ.get("DEEPREC_DATA", ""), name)
    if not os.environ.get("DEEPREC_DATA") or not path.exists():
        pytest.skip(f"{name} is not at hand: set DEEPREC_DATA to a folder that holds it")
    return path


def test_movies_have_genres_plots_and_trigrams_of_titles() -> None:
    """The mean plot has 54 words; a trigram of the paper's 30,621 (500 thousand words of a web index) is rare here."""
    with gzip.open(shared("ml-1m/movie_overviews.csv.gz")) as file:
        movies = pl.read_csv(file.read()).with_columns(label=pl.lit(0))
    schema = FeatureSchema(
        (
            Categorical("source", min_count=2),
            Bag("genres"),
            Text("overview", min_count=2),
            Text("title", tokens="trigrams"),
            Text("plot", tokens="raw", column="overview"),
        ),
        label=None,
    )
    encoder, data = encoded(movies, schema)
    assert len(data) == 3883
    assert data.bags["plot"].texts() == movies["overview"].fill_null("").to_list()
    words = [python_tokens(text or "", "words") for text in movies["overview"].to_list()]
    assert np.diff(data.bags["overview"].offsets).tolist() == [len(row) for row in words]
    counts = Counter(word for row in words for word in row)
    sizes = {field.name: field.size for field in encoder.inputs.sequences}
    assert sizes["overview"] == 1 + sum(count >= 2 for count in counts.values())
    trigrams = {gram for title in movies["title"].to_list() for gram in python_tokens(title, "trigrams")}
    assert sizes["title"] == 1 + len(trigrams)
    assert 3000 < len(trigrams) < 8000
    assert encoder.inputs.bags[0].size == 19


def test_videos_have_the_vectors_of_the_files() -> None:
    visual, sound = (np.load(shared(f"tiktok/{name}_feat.npy"), mmap_mode="r") for name in ("image", "audio"))
    frame = pl.DataFrame({"item": range(len(visual)), "visual": pl.Series(visual.astype(np.float32))})
    frame = frame.with_columns(sound=pl.Series(sound.astype(np.float32)))
    schema = FeatureSchema((Vector("visual", visual.shape[1]), Vector("sound", sound.shape[1])), label=None)
    encoder, _ = encoded(frame, schema)
    data = join(list(encoder.stream(frame)))
    assert data.values.shape == (6710, 256)
    assert (data.values[:, encoder.inputs.columns_of("sound")] == sound).all()
    assert (data.values[:, encoder.inputs.columns_of("visual")] == visual).all()
