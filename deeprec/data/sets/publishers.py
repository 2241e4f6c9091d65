"""Where publishers keep the files of data sets, and how each file is checked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One file to download.

    Args:
        url: where it is.
        folder: below the data directory.
        sha256: of the file, or None where the publisher's own checksum file is asked instead.
        md5_url: the publisher's checksum file (`<md5>  name` or `MD5 (name) = <md5>`).
        unpack: whether it is a zip whose top folder is `folder`.
    """

    url: str
    folder: str
    sha256: str | None = None
    md5_url: str | None = None
    unpack: bool = False

    @property
    def file(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]


def _grouplens(name: str) -> tuple[Source, ...]:
    url = f"https://files.grouplens.org/datasets/movielens/{name}.zip"
    return (Source(url, name, md5_url=f"{url}.md5", unpack=True),)


def _github(repository: str, commit: str, files: dict[str, str]) -> tuple[Source, ...]:
    base = f"https://raw.githubusercontent.com/{repository}/{commit}/Data"
    return tuple(Source(f"{base}/{file}", "ncf", sha256=digest) for file, digest in files.items())


# A fixed commit and the SHA-256 of its files, computed from copies of them (there is no published checksum).
_NCF_COMMIT = "4aab159e81c44b062c091bdaed0ab54ac632371f"
_DEEP_CF_COMMIT = "0d91a5ddacde4ec6de16972cb7f22a74c7c9e1a8"

SOURCES: dict[str, tuple[Source, ...]] = {
    "ml-100k": _grouplens("ml-100k"),
    "ml-1m": (
        *_grouplens("ml-1m"),
        *_github(
            "hexiangnan/neural_collaborative_filtering",
            _NCF_COMMIT,
            {
                "ml-1m.test.rating": "231ae11eb060b643a8c58c063cd17ffc743b54f569afb073d1abb6cf126b88b5",
                "ml-1m.test.negative": "127853228a76b7d21c0481e8ef8d00dd009cd5c88670dbdd9e9debfdb9f93de4",
            },
        ),
    ),
    "ncf-lastfm": _github(
        "familyld/DeepCF",
        _DEEP_CF_COMMIT,
        {
            "lastfm.train.rating": "aa286fd070b5063ccdb3ef847b64c927e83dbc961d8804fa8454dd8964dc6662",
            "lastfm.test.rating": "1bbe3bddddaf7c49d6c3ed204bda72d97545ce1acf98c0e0c7234aff9fcb5ce0",
            "lastfm.test.negative": "331f05638d7a786f59dc33f346318018224bdb24a91a5d0444dcdbf24bf9498d",
        },
    ),
    "ncf-amusic": _github(
        "familyld/DeepCF",
        _DEEP_CF_COMMIT,
        {
            "AMusic.train.rating": "7e7aa977b152a99e706c581f8feaa73a9c490b3c9f88b81a0aa1da3272bd3a98",
            "AMusic.test.rating": "e6d556349b628eaeae94170a96e183db899e1947664bb17dbe30c31962b5def1",
            "AMusic.test.negative": "a490e1666b38ee0cf0396b8723bc1ffc119b3cfa070a7b4b1165ec9b6ed07ce1",
        },
    ),
}
