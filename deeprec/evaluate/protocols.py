"""Evaluation protocols as data: what is held out, against what it is ranked, and how it is counted.

Two results may be compared only when their protocols agree; `Protocol.differences` names what does not.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

from deeprec._suggest import did_you_mean
from deeprec.evaluate.click_protocol import ClickProtocol
from deeprec.evaluate.metrics import RATING_METRICS, WITHOUT_CUTOFF
from deeprec.evaluate.parts import require_one_domain, split_of
from deeprec.evaluate.protocol_checks import BY_SHARE, ONE_ROW, check_protocol, validates_by_share

if TYPE_CHECKING:
    from deeprec.data import Interactions, Split

_logger = logging.getLogger("deeprec")

# What is reported does not change what a figure means, so these do not stand in the way of a comparison.
_REPORTING_FIELDS = ("name", "metrics", "cutoffs")
_CHOOSING_FIELDS = ("validation_users",)  # nor what only chooses the epoch, and measures nothing that is shown
_CHOOSING_SCORES = 1 << 26  # a validation that takes more is made on a sample while the model is trained
_FEWEST_CHOOSING = 1000  # users of such a sample


@dataclass(frozen=True)
class Protocol:
    """One way to measure a model; immutable, checked on construction.

    Attributes:
        name: how it was asked for, one of `NAMES`.
        task: "ranking", the positives among candidates; "next-item", the same after what each user did before, in
            order: a model that reads histories is asked with the training items, and for the test with the validation
            items behind them (see `histories.histories_before`), any other as it was trained; or "rating", the error of
            predicted ratings (then candidates, negatives, mask, ties and cutoffs have no meaning).
        holdout: the test part. "leave_one_out": the last interaction of each user; "random": a random share of all
            interactions; "random_by_user": a random share of each user's; "given_by_user": all but `given_rows` random
            ones of each user's; "last_by_user": the last share of each user's (ranked in one list); "time": what came
            last, from one moment on for all users (each user's positives of that part are ranked in one list); "items":
            a random share of the items, with all their interactions; "users": a random share of the users, of new ones
            all their rows in `domain`, of the others a part (see `new_users_holdout`), with figures "new_..." of the
            new ones alone;
            "sessions": the sessions (users of the data) that start last, whole, see `sessions_holdout`;
            "official": the split that came with the data; "auto": official where
            the data has it, leave_one_out otherwise, and sessions with targets="events" (see `resolve`).
        test_share: test share for "random", "random_by_user", "last_by_user", "time", "items", "users" and "sessions",
            in (0, 1).
        targets: of the next-item task. "users": each user of a part is asked once, with what came before the first
            held-out item, and all held-out items are ranked in one list. "events": each held-out event that has one
            before it is a question of its own, asked with everything that the user or session did before it, held-out
            events too, and nothing else; figures are means over events. Then models that know new users by a set of
            items are asked with that set, and any other as it was trained. See `events.Events`.
        given_rows: for "given_by_user": rows of each user that are trained on, at least 1; `validation_share` is then a
            share of the others.
        validation: "random" or "last" (one training interaction of each user), "share" (a share like that of
            the test, with the hold-outs that have one; before it in time) or "none".
        validation_share: validation share for "share", in (0, 1).
        candidates: "all" items; "part", the items of the part that is measured alone, for holdout "items"; or the
            number of sampled negatives each positive is ranked against, at least 1.
        negatives: "given" (the lists published with the data), "seeded" (drawn from `negatives_seed`), "auto" (given
            where the data has them, seeded otherwise; see `resolve`), "none" where none are sampled.
        negatives_seed: seed of seeded negatives, at least 0. Validation negatives are always seeded.
        mask: parts whose items are taken out of a user's candidates when all items are ranked; subset of
            ("train", "validation"). Validation items are masked in the test only. With targets="events" either takes
            out what stands in the history of the event; (): what was met may come again.
        repeats: rows held out whose user and item meet in a part before too, as the assignments of several tags do:
            "keep" ranks them, though the model saw the pair, "drop" leaves them out.
        ties: "pessimistic": among equal scores the positive ranks last; "authors": the order in which the NCF authors'
            `heapq.nlargest` meets the candidates (sampled candidates only; see `evaluator.candidate_ranks`).
        metrics: names out of `metrics.METRICS`.
        cutoffs: K of each metric that has one, at least 1.
        seed: seed of the split (not of the training), at least 0.
        default_rating: predicted for a user or item without a training rating, in rating units; None: what the model
            says, which may know them from the rows that it was trained on again, with `refit`.
        clamp: whether predictions are clipped to the range of the training ratings, as those of `deeprec predict` are.
        validation_users: users of the validation part who are ranked after each epoch to choose one, always the same;
            0: all. None: all where that takes at most 2^26 scores (users x candidates), otherwise as many as these
            allow and 1,000 at least; `resolve` puts the number. At the end the chosen epoch is measured on all.
        validating: so many users, drawn by their ids and the seed, give the validation rows of "random" and "last";
            what would be those of others is trained on, as where published figures train on all but the test. 0: all.
        domain: for holdout "users": the domain whose items are held out and sampled as negatives; None: all items are
            of one.
        new_share: for "users": share of the held-out users who are new to the domain, in [0, 1].
        given_share: for "users": share of the rows of the others that is trained on, in [0, 1).
    """

    name: str
    holdout: Literal[
        "leave_one_out",
        "random",
        "random_by_user",
        "given_by_user",
        "last_by_user",
        "time",
        "items",
        "users",
        "sessions",
        "official",
        "auto",
    ] = "leave_one_out"
    test_share: float = 0.1
    validation: Literal["random", "last", "share", "none"] = "random"
    validation_share: float = 0.1
    candidates: int | Literal["all", "part"] = "all"
    negatives: Literal["given", "seeded", "auto", "none"] = "none"
    negatives_seed: int = 0
    mask: tuple[str, ...] = ("train", "validation")
    repeats: Literal["keep", "drop"] = "keep"
    ties: Literal["pessimistic", "authors"] = "pessimistic"
    metrics: tuple[str, ...] = ("hr", "ndcg")
    cutoffs: tuple[int, ...] = (10,)
    seed: int = 0
    task: Literal["ranking", "next-item", "rating"] = "ranking"
    default_rating: float | None = None
    clamp: bool = True
    validation_users: int | None = None
    validating: int = 0
    domain: str | None = None
    new_share: float = 0.2
    given_share: float = 0.5
    targets: Literal["users", "events"] = "users"
    given_rows: int = 1

    def __post_init__(self) -> None:
        for field in ("mask", "metrics", "cutoffs"):
            value = getattr(self, field)
            object.__setattr__(self, field, (value,) if isinstance(value, str | int) else tuple(value))
        check_protocol(self)

    @property
    def has_negatives(self) -> bool:
        """Whether the candidates are sampled negatives."""
        return self.candidates not in ("all", "part")

    def resolve(self, data: Interactions) -> Protocol:
        """The same protocol with every "auto" replaced by what it means for `data`; a card must hold this one.

        Raises:
            ValueError: the official split or given negatives are asked for and `data` has none, next items and it
                has no order, or users are held out and it has several domains of which none is named.
        """
        if self.holdout == "users" and self.domain is None:
            require_one_domain(data)
        if self.task == "next-item" and data.order is None:
            raise ValueError(
                f"protocol: next items need the order of the interactions, got {data.name} without timestamps; name "
                "their column, or take the protocol 'full'"
            )
        published = data.official
        given = None if published is None else published.test_negatives
        if published is None and self.holdout == "official":
            raise ValueError(f"protocol: {data.name} carries no official split; take holdout='leave_one_out'")
        holdout, negatives = self.holdout, self.negatives
        if holdout == "auto" and published is not None:
            holdout = "official"
        elif holdout == "auto":
            holdout = "sessions" if self.targets == "events" else "leave_one_out"
        fits = holdout == "official" and given is not None and given.shape[1] == self.candidates
        if negatives == "auto":
            negatives = "given" if fits else "seeded"
        if negatives == "given" and not fits:
            lists = "none" if given is None else f"lists of {given.shape[1]}"
            raise ValueError(
                f"protocol: {self.candidates} given negatives a user are asked for, {data.name} carries {lists}; "
                "take negatives='seeded'"
            )
        validation_users = self._choosing_users(data)
        if (holdout, negatives, validation_users) == (self.holdout, self.negatives, self.validation_users):
            return self
        _logger.info("protocol %s on %s: holdout %s, negatives %s", self.name, data.name, holdout, negatives)
        return dataclasses.replace(self, holdout=holdout, negatives=negatives, validation_users=validation_users)

    def _choosing_users(self, data: Interactions) -> int | None:
        """`validation_users`, by the cost where it is open and that is high."""
        if self.validation_users is not None or "validation_users" in self.without_effect():
            return self.validation_users
        candidates = data.num_items if isinstance(self.candidates, str) else self.candidates + 1
        count = max(_CHOOSING_SCORES // max(candidates, 1), _FEWEST_CHOOSING)
        return count if count < data.num_users else None

    def split(self, data: Interactions, met: Interactions | None = None) -> Split:
        """Train, validation and test parts of `data`, with negatives where the protocol samples candidates.

        Args:
            met: all rows that sampled negatives avoid, over the same id maps; None: those of `data`.
        """
        return split_of(self.resolve(data), data, data if met is None else met)

    def as_dict(self) -> dict[str, Any]:
        """Every field, JSON-ready; `from_dict` takes it back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Protocol:
        """The protocol that `as_dict` wrote.

        Raises:
            ValueError: an unknown key, named with the closest known one.
        """
        _check_keys(values)
        return cls(**values)

    def differences(self, other: Protocol | ClickProtocol) -> list[str]:
        """Fields in which the two disagree as "field: ours / theirs", but for those that only choose what is shown."""
        if isinstance(other, ClickProtocol):
            return [f"task: {self.task!r} / {other.task!r}"]
        ours, theirs = self.as_dict(), other.as_dict()
        # A field that neither protocol uses cannot make a difference; of another task, nothing is the same anyway.
        ignored = {*_REPORTING_FIELDS, *_CHOOSING_FIELDS} | (self.without_effect() & other.without_effect())
        if self.task != other.task:
            ignored |= {"default_rating", "clamp"}
        return [f"{k}: {ours[k]!r} / {theirs[k]!r}" for k in ours if k not in ignored and ours[k] != theirs[k]]

    def without_effect(self) -> set[str]:
        """Fields that change nothing in this protocol."""
        fields = {"default_rating", "clamp"}
        if self.task == "rating":
            fields = {"candidates", "negatives", "negatives_seed", "mask", "ties", "cutoffs", "validation_users"}
        if self.validation == "none":
            fields.add("validation_users")
        if self.validation not in ("random", "last") or self.holdout not in ONE_ROW:
            fields.add("validating")
        if self.task != "next-item":
            fields.add("targets")
        if self.holdout not in BY_SHARE:
            fields |= {"test_share"} if self.validation == "share" else {"test_share", "validation_share"}
        if self.holdout == "given_by_user":
            fields.add("test_share")
        else:
            fields.add("given_rows")
        if self.holdout != "users":
            fields |= {"domain", "new_share", "given_share"}
        if self.holdout in ("last_by_user", "time") or (self.task == "next-item" and not self.validating):
            fields.add("seed")
        if self.candidates != "all":  # of items held out whole, nothing of a part is in the parts before
            fields.add("mask")
        if not self.has_negatives:
            fields.add("negatives_seed")
        return fields

    def changed(self, **options: Any) -> Protocol:
        """The same protocol with some fields replaced.

        Raises:
            ValueError: an option out of range, or one that changes nothing in what comes out.
        """
        made = dataclasses.replace(self, **options)
        for key in sorted(made.without_effect() & set(options)):
            if getattr(made, key) != getattr(self, key):
                raise ValueError(
                    f"protocol: {key} has no effect on a {made.task} protocol with holdout={made.holdout!r} and "
                    f"candidates={made.candidates!r}; leave it out"
                )
        return made

    def same_as(self, other: Protocol | ClickProtocol) -> bool:
        """Whether figures of the two may be compared."""
        return not self.differences(other)

    @property
    def headline(self) -> str:
        """The figure that chooses the epoch and leads a table, such as "hr@10"."""
        first = self.metrics[0]
        return first if first in (*WITHOUT_CUTOFF, *RATING_METRICS) else f"{first}@{self.cutoffs[0]}"


def _check_keys(values: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(Protocol)]
    for key in values:
        if key not in known:
            raise ValueError(f"protocol: unknown field {key!r}; {did_you_mean(key, known)}")


PROTOCOLS: dict[str, Protocol] = {
    # He et al. 2017, section 4.1: the last interaction against 99 negatives, the authors' files where they are at hand.
    "ncf": Protocol("ncf", holdout="auto", candidates=99, negatives="auto", metrics=("hr", "ndcg"), cutoffs=(10,)),
    "full": Protocol("full", metrics=("hr", "ndcg", "mrr", "coverage", "novelty", "gini"), cutoffs=(10,)),
    "random": Protocol(
        "random",
        holdout="random",
        validation="share",
        metrics=("recall", "ndcg", "precision", "map", "mrr", "auc"),
        cutoffs=(10, 20),
    ),
    # Wu et al. 2016, section 5: a fifth of each user's likes; half as much, out of the rest, chooses.
    "cdae": Protocol(
        "cdae",
        holdout="random_by_user",
        test_share=0.2,
        validation="share",
        metrics=("map", "ndcg", "recall"),
        cutoffs=(10, 5, 1),
    ),
    # Wang, Wang and Yeung 2015, section 4.2: one item of each user trains (given_rows=10: their dense setting); of
    # the others a tenth chooses, which theirs has not, and the rest tests.
    "cdl": Protocol(
        "cdl",
        holdout="given_by_user",
        validation="share",
        metrics=("recall", "map", "ndcg"),
        cutoffs=(300, 50, 100, 200, 500),
    ),
    # Xu et al. 2016, section 5, of a `Folksonomy`: 5 % and 15 % of the assignments, all items ranked. As printed a pair
    # may be in training and test; mask=("train", "validation") with repeats="drop" leaves it out.
    "dspr": Protocol(
        "dspr",
        holdout="random",
        test_share=0.15,
        validation="share",
        validation_share=0.05,
        mask=(),
        metrics=("precision", "recall", "f1", "map_all", "mrr_all", "mrr_pairs"),
        cutoffs=(10, 1, 5, 20),
    ),
    # Sedhain et al. 2015, section 3: random 90/10, a tenth of the training part chooses; their
    # 3 where nothing is known, which no other scale of ratings would take, is default_rating=3.
    "rating": Protocol(
        "rating", task="rating", holdout="random", validation="share", validation_share=0.09, metrics=("rmse", "mae")
    ),
    # Kang and McAuley 2018, section 4, but among all items: the last interaction tests, the one before it chooses.
    "next-item": Protocol(
        "next-item", task="next-item", validation="last", metrics=("hr", "ndcg", "mrr"), cutoffs=(10,)
    ),
    # Hidasi et al. 2016, section 4, of sessions: every event but the first is ranked among all items, none of which is
    # taken out; the official sessions where the data has them, otherwise those that start last.
    "next-event": Protocol(
        "next-event",
        task="next-item",
        targets="events",
        holdout="auto",
        validation="share",
        mask=(),
        metrics=("recall", "mrr", "ndcg"),
        cutoffs=(20,),
    ),
    # Tang and Wang 2018, section 4.1: the last fifth of each user's sequence tests, the tenth before it chooses.
    "caser": Protocol(
        "caser",
        task="next-item",
        holdout="last_by_user",
        test_share=0.2,
        validation="share",
        metrics=("map_all", "precision", "recall"),
        cutoffs=(10, 1, 5),
    ),
    # Wang and Blei 2011, "out-of-matrix": items without any training interaction, among themselves. A model that knows
    # nothing else of them gives them equal scores, which rank last, or guesses.
    "cold-items": Protocol(
        "cold-items",
        holdout="items",
        validation="share",
        candidates="part",
        metrics=("recall", "hr", "ndcg"),
        cutoffs=(20,),
    ),
    # Elkahky, Song and He 2015, section 7: MRR and P@1 of each pair among ten items of the domain; 0.2929 and 0.1 by
    # chance. Old and new users together, and new ones alone. Theirs has no validation part.
    "cross-domain": Protocol(
        "cross-domain",
        holdout="users",
        validation="share",
        validation_share=0.05,
        candidates=9,
        negatives="seeded",
        metrics=("mrr", "precision"),
        cutoffs=(10, 1),
    ),
}
NAMES = (*PROTOCOLS, "click")  # all that `protocol` takes


def protocol_from_dict(values: Mapping[str, Any]) -> Any:
    """The `Protocol` or `ClickProtocol` that `as_dict` wrote."""
    return (ClickProtocol if values.get("task") == "click" else Protocol).from_dict(values)


@overload
def protocol(name: Literal["click"], **overrides: Any) -> ClickProtocol: ...
@overload
def protocol(name: str, **overrides: Any) -> Protocol: ...
def protocol(name: str, **overrides: Any) -> Protocol | ClickProtocol:
    """A protocol by name with some fields replaced: `protocol("ncf", ties="authors", cutoffs=(5, 10))`.

    Args:
        name: one of `NAMES`; "click" for click models.
        overrides: fields of `Protocol`. Asking for sampled `candidates` implies seeded negatives, and the reverse;
            another `holdout` implies the validation that goes with it.
    Raises:
        ValueError: an unknown name or field, or a value out of its range.
    """
    if name == "click":
        return ClickProtocol.from_dict(overrides)
    if name not in PROTOCOLS:
        raise ValueError(f"protocol: unknown protocol {name!r}; {did_you_mean(name, NAMES)}")
    _check_keys(overrides)
    base = PROTOCOLS[name]
    if "candidates" in overrides and "negatives" not in overrides:
        if overrides["candidates"] in ("all", "part"):
            overrides["negatives"] = "none"
        elif base.negatives == "none":
            overrides["negatives"] = "seeded"
    if overrides.keys() & {"holdout", "targets"} and "validation" not in overrides and base.validation != "none":
        cut = {name: overrides.get(name, getattr(base, name)) for name in ("holdout", "targets")}
        if validates_by_share(**cut):
            overrides["validation"] = "share"
        elif base.validation == "share":
            overrides["validation"] = "last" if base.task == "next-item" else "random"
    return base.changed(**overrides)
