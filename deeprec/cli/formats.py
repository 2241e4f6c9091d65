"""Which files `--data` takes, and the words that go with each: what `deeprec data formats` prints."""

from __future__ import annotations

from typing import NamedTuple


class Example(NamedTuple):
    """A layout, its first line, and what stands behind `deeprec train MODEL`."""

    layout: str
    line: str
    words: str


USERS_AND_ITEMS = (
    Example("table with names", "user_id,item_id,rating,timestamp", "--data ratings.csv"),
    Example("names of its own", "who;film;stars;day", "--data log.csv data.user=who data.item=film data.rating=stars"),
    Example("no names, any separator", "196 242 3 881250949", "--data u.data"),
    Example("columns by place", "u7|x|i9", "--data log.txt data.user=0 data.item=2"),
    Example("rows in order of time", "1 5", "--data log.txt data.order=file"),
    Example("a list a user", "1 5 3 9", "--data lists.txt data.format=lists"),
    Example("a session a line", "5 3 9", "--data sessions.txt data.format=sessions"),
    Example("a tag a row", "user_id,item_id,tag", "--data tags.csv data.tag=tag"),
    Example("a text a row", "user_id,item_id,rating,text", "--data reviews.csv data.review=text"),
    Example("matrix, 0 = not rated", "0 0 5 0 3", "--data train.ascii data.format=matrix"),
    Example("JSON lines", '{"user_id": 1, "item_id": 7}', "--data reviews.jsonl"),
    Example("MIND impressions", "1 U9 11/13/2019 5:53:12 AM N1 N5-1 N6-0", "--data behaviors.tsv data.format=mind"),
    Example("NCF triple", "0 25 5", "--data ml-1m.train.rating"),
    Example("several files", "", "--data part1.csv,part2.csv"),
    Example("a file a domain", "", "--data books=books.csv,films=films.csv"),
    Example("a column of domains", "user_id,item_id,shop", "--data log.csv data.domain=shop"),
    Example("files for testing", "", "--data train.txt --validation-data valid.txt --test-data test.txt"),
    Example("a folder of such", "train.txt, valid.txt, test.txt", "--data FOLDER"),
)
CLICKS = (
    Example("table with a schema", "clicked,site,price", "--data log.csv --schema schema.yaml"),
    Example("schema drafted", "clicked,site,price", "--data log.csv data.label=clicked"),
    Example("no names", "39, State-gov, <=50K", "--data adult.data data.label=14 'data.positive=>50K'"),
    Example("libSVM, libFFM, libFM", "1 3:0.5 7:1", "--data train.libsvm --test-data test.libsvm"),
    Example("Criteo", "0 1 1 5 ... 68fd1e64", "--data train.txt data.format=criteo"),
    Example("JSON lines", '{"label": 1, "site": "a"}', "--data log.jsonl"),
    Example("MIND impressions", "", "--data behaviors.tsv data.format=mind"),
)
# What is told of a text where its first rows do not show it.
OPTIONS = {
    "data.separator=';'": "one or more characters, or tab, comma, semicolon, pipe, colons, space, spaces (any number)",
    "data.quote=none": "a quote is a character like others",
    "data.header=false": "the first row is data (true: it is names, though it holds numbers)",
    "data.columns=a,b,c": "names of the columns of a text without names",
    "data.missing=NA,?": "texts that mean a missing value",
    "data.comment='#'": "lines that begin so are passed over",
    "data.skip_lines=1": "first lines that are passed over",
    "data.user=0": "also item, rating, order (or timestamp), label, tag, review, domain: a name, or the place from 0",
    "data.format=lists": "table, sessions, matrix, jsonl, mind, parquet; of clicks csv, criteo, libsvm, libffm, libfm",
    "data.counted=true": "the first number of a list is how many items follow",
    "data.ordered=false": "the order of a list says nothing of time",
    "data.duplicates=keep": "rows with the same user and item stay (latest: the last one; raise: an error)",
    "data.on_bad=skip": "malformed rows are left out and counted (of clicks --on-bad skip)",
    "data.min_rating=4": "rows rated so or better become likes; data.min_interactions=5 leaves out the rare",
    "data.min_tag_uses=15": "rows without a tag, or with a rarer one, are left out",
}
