"""Fetching, against a server on this machine: checked, resumed, all or nothing, never unasked."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from deeprec import data
from deeprec.data.sets.publishers import Source

RATINGS = b"".join(b"%d::%d::3::97830%04d\n" % (row % 50 + 1, row // 50 + 1, row) for row in range(2_000))


def zipped(folder: str = "ml-1m") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{folder}/ratings.dat", RATINGS)
        archive.writestr(f"{folder}/README", "terms")
    return buffer.getvalue()


class Publisher(BaseHTTPRequestHandler):
    """Serves `files`; breaks off after `limit` bytes when set; understands Range unless told not to."""

    files: ClassVar[dict[str, bytes]] = {}
    limit: ClassVar[int | None] = None
    ranges: ClassVar[bool] = True
    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        name, wanted = self.path.rpartition("/")[2], self.headers.get("Range")
        self.asked.append((name, wanted))
        if name not in self.files:
            self.send_error(404)
            return
        body = self.files[name]
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start and start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:] if self.limit is None else body[start : start + self.limit])

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.delenv("DEEPREC_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    archive = zipped()
    digest = hashlib.md5(archive, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(
        Publisher, "files", {"ml-1m.zip": archive, "ml-1m.zip.md5": f"MD5 (ml-1m.zip) = {digest}".encode()}
    )
    monkeypatch.setattr(Publisher, "limit", None)
    monkeypatch.setattr(Publisher, "ranges", True)
    monkeypatch.setattr(Publisher, "asked", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), Publisher) as serving:
        Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def ml_1m(server: str) -> tuple[Source, ...]:
    return (Source(f"{server}/ml-1m.zip", "ml-1m", md5_url=f"{server}/ml-1m.zip.md5", unpack=True),)


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_fetched_data_set_is_found_by_its_name(server: str) -> None:
    seen: list[tuple[str, int, int | None]] = []
    done = data.fetch("ml-1m", sources=ml_1m(server), progress=lambda *step: seen.append(step))
    assert done == [data.cache_dir() / "ml-1m"]
    assert len(data.load("ml-1m")) == 2_000
    assert left(data.cache_dir()) == ["ml-1m/README", "ml-1m/ratings.dat"]
    size = len(Publisher.files["ml-1m.zip"])
    assert seen[-1] == ("ml-1m.zip", size, size)


def test_a_second_fetch_asks_the_network_nothing(server: str) -> None:
    data.fetch("ml-1m", sources=ml_1m(server))
    Publisher.asked.clear()
    data.fetch("ml-1m", sources=ml_1m(server))
    assert Publisher.asked == []
    data.fetch("ml-1m", sources=ml_1m(server), force=True)
    assert ("ml-1m.zip", None) in Publisher.asked


def test_a_broken_download_is_resumed(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Publisher, "limit", 5_000)
    with pytest.raises(OSError, match=r"broke off after 5,000\); .* fetch again \(it resumes\)"):
        data.fetch("ml-1m", tmp_path, sources=ml_1m(server))
    assert left(tmp_path) == ["ml-1m.zip.part"]
    monkeypatch.setattr(Publisher, "limit", None)
    data.fetch("ml-1m", tmp_path, sources=ml_1m(server))
    assert Publisher.asked[-1] == ("ml-1m.zip", "bytes=5000-")
    assert left(tmp_path) == ["ml-1m/README", "ml-1m/ratings.dat"]


def test_a_server_without_ranges_starts_over(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Publisher, "ranges", False)
    (tmp_path / "ml-1m.zip.part").write_bytes(b"something old")
    data.fetch("ml-1m", tmp_path, sources=ml_1m(server))
    assert len(data.load("ml-1m", tmp_path)) == 2_000


def test_a_whole_part_is_checked_and_used(server: str, tmp_path: Path) -> None:
    (tmp_path / "ml-1m.zip.part").write_bytes(Publisher.files["ml-1m.zip"])
    data.fetch("ml-1m", tmp_path, sources=ml_1m(server))
    assert len(data.load("ml-1m", tmp_path)) == 2_000


def test_a_wrong_checksum_is_refused_and_nothing_stays(server: str, tmp_path: Path) -> None:
    Publisher.files["ml-1m.zip.md5"] = b"0" * 32 + b"  ml-1m.zip"
    with pytest.raises(ValueError, match=f"must have the md5 {'0' * 32}, got [0-9a-f]{{32}}; the download was deleted"):
        data.fetch("ml-1m", tmp_path, sources=ml_1m(server))
    assert left(tmp_path) == []


def test_a_given_sha256_is_checked_instead(server: str, tmp_path: Path) -> None:
    del Publisher.files["ml-1m.zip.md5"]
    with pytest.raises(ValueError, match="must have the sha256"):
        data.fetch("ml-1m", tmp_path, sources=ml_1m(server), sha256="a" * 64)
    digest = hashlib.sha256(Publisher.files["ml-1m.zip"]).hexdigest()
    data.fetch("ml-1m", tmp_path, sources=ml_1m(server), sha256=digest.upper())
    assert len(data.load("ml-1m", tmp_path)) == 2_000
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        data.fetch("ml-1m", tmp_path, sources=ml_1m(server), sha256="abc")


def test_a_checksum_file_without_a_checksum_is_refused(server: str, tmp_path: Path) -> None:
    Publisher.files["ml-1m.zip.md5"] = b"<html>moved</html>"
    with pytest.raises(ValueError, match=r"must hold an MD5, got '<html>moved</html>'; pass sha256"):
        data.fetch("ml-1m", tmp_path, sources=ml_1m(server))
    assert left(tmp_path) == []


def test_a_plain_file_is_put_in_its_folder(server: str, tmp_path: Path) -> None:
    Publisher.files["x.test.rating"] = b"0\t1\t5\n"
    digest = hashlib.sha256(b"0\t1\t5\n").hexdigest()
    sources = (Source(f"{server}/x.test.rating", "ncf", sha256=digest),)
    assert data.fetch("ml-1m", tmp_path, sources=sources) == [tmp_path / "ncf" / "x.test.rating"]
    assert left(tmp_path) == ["ncf/x.test.rating"]


def test_an_answer_that_is_no_zip_or_another_zip_leaves_nothing(server: str, tmp_path: Path) -> None:
    for body, message in (
        (b"not a zip", "must be a zip file"),
        (zipped("other"), r"must hold a folder ml-1m, got \['other'\]"),
    ):
        Publisher.files["ml-1m.zip"] = body
        digest = hashlib.sha256(body).hexdigest()
        with pytest.raises(ValueError, match=message):
            data.fetch("ml-1m", tmp_path, sources=ml_1m(server), sha256=digest)
        assert left(tmp_path) == []


def test_a_missing_file_and_a_dead_server_say_what_to_do(server: str, tmp_path: Path) -> None:
    del Publisher.files["ml-1m.zip"]
    with pytest.raises(OSError, match=r"was not fetched .* or put the files at"):
        data.fetch("ml-1m", tmp_path, sources=ml_1m(server))
    with pytest.raises(OSError, match="was not fetched"):
        data.fetch("ml-1m", tmp_path, sources=ml_1m("http://127.0.0.1:9"))
    assert left(tmp_path) == []


def test_a_target_that_cannot_be_written_is_named(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"must be a folder one can write to, .*; pass another data_dir"):
        data.fetch("ml-1m", tmp_path / "file", sources=ml_1m(server))


def test_names_that_cannot_be_fetched_say_where_to_get_them() -> None:
    with pytest.raises(ValueError, match=r"'ncf-ml-1m', .*did you mean 'ml-1m'\?; get it from https://"):
        data.fetch("ncf-ml-1m")
    with pytest.raises(ValueError, match="did you mean 'ml-1m'"):
        data.fetch("ml1m")


def test_plain_http_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"https is required, got http://example\.org"):
        data.fetch("ml-1m", tmp_path, sources=(Source("http://example.org/ml-1m.zip", "ml-1m", sha256="a" * 64),))


def test_every_publisher_file_has_a_checksum_and_https() -> None:
    for name, sources in data.SOURCES.items():
        assert data.info(name).name == name
        for source in sources:
            assert source.url.startswith("https://")
            assert source.sha256 or source.md5_url


def test_load_never_fetches(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("load opened a connection"))
    with pytest.raises(FileNotFoundError, match="run `deeprec data fetch ml-1m`"):
        data.load("ml-1m")
