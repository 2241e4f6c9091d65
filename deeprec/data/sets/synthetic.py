"""A made-up data set with a known truth, for a demonstration without downloads and for tests.

Items belong to genres, users have tastes over genres that lean on their age; both become latent factors. A user's
items are drawn without replacement with probability proportional to
    exp(strength * <user factors, item factors> + item_bias),
item_bias = -popularity * log(popularity rank), a long tail. Ratings follow the affinity with noise. The order of a
user's interactions is random (there is no drift to learn). The same arguments give the same data under one version of
NumPy.

With several domains each item belongs to one, and each user meets items of as many of them as chance has it, one at
least, by the same taste: what somebody reads says what they would watch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec.data.interactions.features import align
from deeprec.data.interactions.ids import IdMap
from deeprec.data.interactions.interactions import Float32Array, Interactions

_CELLS = 1 << 22  # (user, item) cells scored at a time
_DOMAINS = ("films", "books", "games", "songs")
_DOMAIN_STREAM, _LABEL_STREAM = 1, 2  # of the seed; all that is drawn without domains stays what it is with them

# genre: (nouns of titles, plots and tags)
_GENRES: dict[str, str] = {
    "Adventure": "island compass caravan treasure summit voyage",
    "Comedy": "wedding neighbour holiday waiter cousin misunderstanding",
    "Crime": "heist ledger detective alibi harbour informer",
    "Documentary": "glacier archive orchard factory choir river",
    "Drama": "letter inheritance farewell sister winter promise",
    "Fantasy": "dragon oath tower witch mirror kingdom",
    "Horror": "cellar whisper lighthouse mask fog visitor",
    "Musical": "stage trumpet rehearsal ballad orchestra encore",
    "Mystery": "riddle telegram manor witness clock stranger",
    "Romance": "balcony violin train garden waltz summer",
    "Sci-Fi": "orbit android signal colony comet engine",
    "Western": "canyon sheriff saddle railroad ranch duel",
}
# fmt: off
_ADJECTIVES = ("Silent", "Crimson", "Last", "Golden", "Hidden", "Broken", "Restless", "Wild", "Hollow", "Bright",
               "Distant", "Paper", "Velvet", "Lonely")
# fmt: on
_PLOTS = (
    "A {adjective} {genre} tale in which a {first} and a {second} change everything.",
    "When a {first} turns up, one {second} is all that stands between two rivals: a {adjective} {genre} story.",
    "Somewhere between {first} and {second} lies the heart of this {adjective} {genre} piece.",
)
_AGES = (18, 25, 35, 45, 55)
_OCCUPATIONS = ("artist", "engineer", "farmer", "nurse", "student", "teacher", "writer")


@dataclass(frozen=True, eq=False)
class SyntheticTruth:
    """What the data was drawn from.

    Args:
        user_factors: float32 [num_users, k]. item_factors: float32 [num_items, k].
        item_bias: float32 [num_items], log popularity. strength: weight of taste against popularity.
        user_genres, item_genres: shares over `genres`, float32 [., num_genres], rows sum to 1.
    """

    user_factors: Float32Array
    item_factors: Float32Array
    item_bias: Float32Array
    strength: float
    user_genres: Float32Array
    item_genres: Float32Array
    genres: tuple[str, ...]

    def scores(self, users: NDArray[np.integer[Any]]) -> Float32Array:
        """Log-odds of meeting each item, float32 [len(users), num_items], for internal user ids."""
        scores: Float32Array = self.strength * self.user_factors[users] @ self.item_factors.T + self.item_bias
        return scores


@dataclass(frozen=True, eq=False, repr=False)
class SyntheticInteractions(Interactions):
    """Interactions and the truth they were drawn from; a part taken from them keeps it."""

    truth: SyntheticTruth | None = None


def synthetic(
    num_users: int = 2_000,
    num_items: int = 1_500,
    num_interactions: int = 120_000,
    *,
    seed: int = 0,
    num_factors: int = 16,
    strength: float = 2.0,
    popularity: float = 0.7,
    min_per_user: int = 5,
    domains: int = 1,
    name: str = "synthetic",
) -> SyntheticInteractions:
    """Draw a data set. Time is proportional to num_users * num_items (the default takes about 0.2 s).

    Args:
        num_users, num_items, num_interactions: sizes; user ids are 1..num_users, item ids 1..num_items.
        seed: of everything.
        num_factors: k, latent dimensions. strength: of taste, 0 for popularity alone.
        popularity: exponent of the long tail, 0 for equally popular items.
        min_per_user: the fewest interactions a user has.
        domains: of the items, 1 to 4 of films, books, games and songs.
    Returns:
        Interactions with ratings 1..5, timestamps in seconds, features of users (gender, age, occupation) and items
        (title, genres, year, text, tags, and domain where there are several), and `.truth`.
    Raises:
        ValueError: sizes that do not fit: num_interactions must lie between num_users * min_per_user and half of
            num_users * num_items.
    """
    for label, value in {"num_users": num_users, "num_items": num_items, "num_factors": num_factors}.items():
        if value < 1:
            raise ValueError(f"synthetic: {label} must be at least 1, got {value}")
    _check_sizes("synthetic", num_users, num_items, num_interactions, min_per_user)
    if not 1 <= domains <= min(len(_DOMAINS), num_items):
        raise ValueError(
            f"synthetic: domains must be in [1, {min(len(_DOMAINS), num_items)}] of {num_items} items, got {domains}"
        )
    rng = np.random.Generator(np.random.Philox(seed))
    ages = rng.integers(0, len(_AGES), num_users)
    truth = _draw_truth(rng, ages, num_items, num_factors, strength, popularity)
    counts = _activity(rng, num_users, num_items, num_interactions, min_per_user)
    domain_of, is_active = _draw_domains(seed, counts, num_items, domains)
    users, items = _draw_pairs(rng, truth, counts, None if domains == 1 else is_active[:, domain_of])
    affinity = np.einsum("nk,nk->n", truth.user_factors[users], truth.item_factors[items])
    centred = (affinity - affinity.mean()) / (affinity.std() + 1e-9)
    ratings = np.clip(np.round(3.5 + 0.9 * centred + 0.5 * rng.standard_normal(len(users))), 1, 5)
    user_frame, item_frame = _user_features(rng, ages), _item_features(rng, truth)
    if domains > 1:
        item_frame = item_frame.with_columns(domain=np.array(_DOMAINS)[domain_of])
    return SyntheticInteractions(
        users=users,
        items=items,
        user_ids=IdMap(user_frame.get_column("user_id"), "user"),
        item_ids=IdMap(item_frame.get_column("item_id"), "item"),
        ratings=ratings.astype(np.float32),
        order=_timestamps(rng, users),
        order_kind="time",
        name=name,
        user_features=user_frame,
        item_features=item_frame,
        truth=truth,
    )


def interactions_of_labels(
    items: pl.DataFrame,
    label: str,
    num_users: int = 500,
    num_interactions: int = 10_000,
    *,
    seed: int = 0,
    num_factors: int = 16,
    strength: float = 2.0,
    popularity: float = 0.7,
    min_per_user: int = 5,
    name: str = "labels",
) -> SyntheticInteractions:
    """Interactions with real items, drawn by the same law from tastes for what the items are labelled as.

    A user likes labels, and so what a model learns of the items' media is what there is to know of items that nobody
    met: their popularity is drawn without regard to the label.

    Args:
        items: a table with item_id, and any other columns, which become the features of the items.
        label: its column with the label of each item, two different ones at least.
        num_users, num_interactions, seed, num_factors, strength, popularity, min_per_user: as of `synthetic`.
    Returns:
        Interactions with timestamps, without ratings; `.truth.genres` are the labels in ascending order.
    Raises:
        ValueError: sizes that do not fit, as of `synthetic`; no such column, or fewer than two labels.
    """
    if label not in items.columns or items.get_column(label).n_unique() < 2:
        raise ValueError(
            f"interactions_of_labels: label must be a column with two labels at least, of {items.columns}, got "
            f"{label!r}"
        )
    _check_sizes("interactions_of_labels", num_users, len(items), num_interactions, min_per_user)
    ids = IdMap(items.get_column("item_id").sort(), "item")
    frame = align(items, ids)
    labels, genre_of = np.unique(frame.get_column(label).cast(pl.String).to_numpy(), return_inverse=True)
    rng = np.random.Generator(np.random.Philox((seed, _LABEL_STREAM)))
    ages = rng.integers(0, len(_AGES), num_users)
    centres = rng.standard_normal((len(labels), num_factors)) / np.sqrt(num_factors)
    genres = tuple(str(each) for each in labels)
    truth = _with_users(rng, ages, centres, np.eye(len(labels))[genre_of], strength, popularity, genres)
    counts = _activity(rng, num_users, len(items), num_interactions, min_per_user)
    users, met = _draw_pairs(rng, truth, counts)
    return SyntheticInteractions(
        users=users,
        items=met,
        user_ids=IdMap(pl.Series("user_id", np.arange(1, num_users + 1)), "user"),
        item_ids=ids,
        order=_timestamps(rng, users),
        order_kind="time",
        name=name,
        item_features=frame,
        truth=truth,
    )


def _check_sizes(owner: str, num_users: int, num_items: int, num_interactions: int, min_per_user: int) -> None:
    low, high = num_users * min_per_user, num_users * num_items // 2
    if min_per_user < 1 or not low <= num_interactions <= high:
        raise ValueError(
            f"{owner}: num_interactions must be in [{low}, {high}] (min_per_user={min_per_user} for each user, at "
            f"most half of all pairs), got {num_interactions}; change num_interactions, num_users or num_items"
        )


def _draw_truth(
    rng: np.random.Generator,
    ages: NDArray[np.int64],
    num_items: int,
    num_factors: int,
    strength: float,
    popularity: float,
) -> SyntheticTruth:
    num_genres = len(_GENRES)
    centres = rng.standard_normal((num_genres, num_factors)) / np.sqrt(num_factors)
    item_genres = np.zeros((num_items, num_genres))
    first, second = (rng.integers(0, num_genres, num_items) for _ in range(2))
    weight = rng.choice([1.0, 0.65], num_items)  # one genre, or two
    rows = np.arange(num_items)
    item_genres[rows, first] += weight
    item_genres[rows, second] += 1 - weight
    return _with_users(rng, ages, centres, item_genres, strength, popularity, tuple(_GENRES))


def _with_users(
    rng: np.random.Generator,
    ages: NDArray[np.int64],
    centres: NDArray[np.float64],
    item_genres: NDArray[np.float64],
    strength: float,
    popularity: float,
    genres: tuple[str, ...],
) -> SyntheticTruth:
    """Tastes of users for genres with these centres [num_genres, k], and the factors that follow."""
    num_items, num_factors = len(item_genres), centres.shape[1]
    # Tastes: a sparse Dirichlet tilted towards what the age group likes.
    tilt = rng.gamma(0.5, 1.0, (len(_AGES), len(genres)))
    user_genres = rng.gamma(0.15 + 0.25 * tilt[ages])
    user_genres /= user_genres.sum(axis=1, keepdims=True)
    user_factors = user_genres @ centres * 2.0 + 0.35 * rng.standard_normal((len(ages), num_factors)) / 4.0
    item_factors = item_genres @ centres * 2.0 + 0.35 * rng.standard_normal((num_items, num_factors)) / 4.0
    bias = -popularity * np.log(1.0 + rng.permutation(num_items))
    return SyntheticTruth(
        user_factors=user_factors.astype(np.float32),
        item_factors=item_factors.astype(np.float32),
        item_bias=bias.astype(np.float32),
        strength=strength,
        user_genres=user_genres.astype(np.float32),
        item_genres=item_genres.astype(np.float32),
        genres=genres,
    )


def _activity(
    rng: np.random.Generator, num_users: int, num_items: int, num_interactions: int, min_per_user: int
) -> NDArray[np.int64]:
    """Interactions of each user: long-tailed, within [min_per_user, num_items], of the exact sum."""
    cap = max(min_per_user, min(num_items, 8 * num_interactions // num_users, (num_items + 1) * 3 // 4))
    weights = rng.lognormal(0.0, 0.8, num_users)
    counts = np.full(num_users, min_per_user, dtype=np.int64)
    while (left := num_interactions - int(counts.sum())) > 0:
        open_weights = np.where(counts < cap, weights, 0.0)
        if not open_weights.any():
            cap = num_items
            continue
        share = np.floor(left * open_weights / open_weights.sum()).astype(np.int64)
        if not share.any():  # fewer left than users: one each for the most active
            share[np.argsort(-open_weights)[:left]] = 1
        counts = np.minimum(counts + share, cap)
    return counts


def _draw_domains(
    seed: int, counts: NDArray[np.int64], num_items: int, domains: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The domain of each item, [num_items], and whether each user is active in each domain, [num_users, domains]."""
    rng = np.random.Generator(np.random.Philox((seed, _DOMAIN_STREAM)))
    domain_of = rng.permutation(np.arange(num_items) % domains)
    order = rng.random((len(counts), domains)).argsort(axis=1)
    is_active = order < rng.integers(1, domains + 1, len(counts))[:, None]
    # Nobody is to meet more than half of what there is.
    is_active[is_active @ np.bincount(domain_of) < 2 * counts] = True
    return domain_of, is_active


def _draw_pairs(
    rng: np.random.Generator,
    truth: SyntheticTruth,
    counts: NDArray[np.int64],
    may_meet: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Each user's items without replacement, by the Gumbel top-k trick; a user's items come in random order.

    Args:
        may_meet: [num_users, num_items], which items a user may have, as many as their count at least; None: any.
    """
    num_users, num_items = len(counts), len(truth.item_bias)
    users = np.repeat(np.arange(num_users, dtype=np.int32), counts)
    items = np.empty(len(users), dtype=np.int32)
    ends = np.cumsum(counts)
    step = max(1, _CELLS // num_items)
    for start in range(0, num_users, step):
        block = np.arange(start, min(start + step, num_users))
        uniform = rng.random((len(block), num_items), dtype=np.float32)
        noisy = truth.scores(block) - np.log(-np.log(np.clip(uniform, 1e-12, 1.0 - 1e-7)))
        if may_meet is not None:
            noisy[~may_meet[block]] = -np.inf
        order = np.argsort(-noisy, axis=1)
        for row, user in enumerate(block):  # rows are of unequal length; a slice each, no work per interaction
            items[ends[user] - counts[user] : ends[user]] = rng.permutation(order[row, : counts[user]])
    return users, items


def _timestamps(rng: np.random.Generator, users: NDArray[np.int32]) -> NDArray[np.int64]:
    """Seconds since 1970: users start within 2022 and meet items at random gaps (an hour to weeks), in row order."""
    gaps = 3_600 + rng.exponential(86_400.0, len(users)).astype(np.int64)
    starts = 1_640_995_200 + rng.integers(0, 365 * 86_400, int(users.max()) + 1)
    elapsed = np.cumsum(gaps)
    first = np.searchsorted(users, users)  # row of the user's first interaction
    times: NDArray[np.int64] = starts[users] + elapsed - elapsed[first]
    return times


def _user_features(rng: np.random.Generator, ages: NDArray[np.int64]) -> pl.DataFrame:
    count = len(ages)
    return pl.DataFrame(
        {
            "user_id": np.arange(1, count + 1),
            "gender": np.array(["F", "M"])[rng.integers(0, 2, count)],
            "age": np.array(_AGES)[ages],
            "occupation": np.array(_OCCUPATIONS)[rng.integers(0, len(_OCCUPATIONS), count)],
        }
    )


def _item_features(rng: np.random.Generator, truth: SyntheticTruth) -> pl.DataFrame:
    rows = []
    words = [nouns.split() for nouns in _GENRES.values()]
    for shares in truth.item_genres:
        present = np.flatnonzero(shares)[np.argsort(-shares[shares > 0])]
        genres = [truth.genres[genre] for genre in present]
        nouns = rng.permutation([noun for genre in present for noun in words[genre]])[:3].tolist()
        adjective = _ADJECTIVES[rng.integers(len(_ADJECTIVES))]
        year = int(rng.integers(1950, 2023))
        text = _PLOTS[rng.integers(len(_PLOTS))].format(
            adjective=adjective.lower(), genre=genres[0].lower(), first=nouns[0], second=nouns[1]
        )
        rows.append((f"The {adjective} {nouns[0].title()} ({year})", genres, year, text, nouns))
    frame = pl.DataFrame(rows, schema=["title", "genres", "year", "text", "tags"], orient="row")
    return frame.select(pl.int_range(1, len(rows) + 1, dtype=pl.Int64).alias("item_id"), pl.all())
