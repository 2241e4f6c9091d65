"""Options of the models of several views, and the sizes that they are built for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deeprec.config import Only, at_least, one_of
from deeprec.data.columns.reduction import REDUCTIONS
from deeprec.models._tower_config import TowerConfig
from deeprec.models._tower_terms import TowerSizes

ONE_DOMAIN = ("items",)  # of data that names none


@dataclass(frozen=True)
class MultiViewConfig(TowerConfig):
    """Attributes: those of `TowerConfig`, of which negatives are of the positive's domain, and

    user_domains: domains whose items the view of a user shows, () for all.
    item_domains: domains whose pairs are trained on, () for all; with one of each the model is a single view.
    domain_bias: with dot products, whether each domain adds a vector of its own to the user's.
    hide_own: share of the rows, in [0, 1], in which a user who met something elsewhere shows nothing of the domain of
        the positive.
    history_reduction: "none"; or what makes the items of a view of a user fewer: "top-k", the most frequent ones,
        "k-means", clusters of them, "lsh", the signs of random projections; see `deeprec.data.columns.reduction`.
    history_width: terms, clusters or projections after it, >= 1.
    averaged: whether the items that a user met in a domain are one training pair, their mean. It learns from means and
        is asked about single items.
    """

    unused: ClassVar[tuple[str, ...]] = (*TowerConfig.unused, "hard_negatives", "hard_pool")
    conditions: ClassVar[tuple[Only, ...]] = (
        *(only for only in TowerConfig.conditions if not {"hard_negatives", "hard_pool"} & {*only.options}),
        Only(
            ("user_domains", "history_reduction"),
            'user_inputs with "history"',
            lambda config: "history" in config.user_inputs,
        ),
        Only(("encoders",), "pairs that are not averaged", lambda config: not config.averaged),
        Only(("domain_bias",), 'similarity "dot"', lambda config: config.similarity == "dot"),
        Only(
            ("hide_own",),
            'user_inputs with "history", and not averaged',
            lambda config: "history" in config.user_inputs and not config.averaged,
        ),
        Only(("history_width",), "a history_reduction", lambda config: config.history_reduction != "none"),
    )

    user_domains: tuple[str, ...] = ()
    item_domains: tuple[str, ...] = ()
    domain_bias: bool = True
    hide_own: float = 0.5
    history_reduction: str = "none"
    history_width: int = 1000
    averaged: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "history_reduction", ("none", *REDUCTIONS))
        at_least(self, "history_width", 1)
        if not 0 <= self.hide_own <= 1:
            raise ValueError(f"MultiViewConfig: hide_own must be a share in [0, 1], got {self.hide_own}")
        if self.averaged and self.negatives != "sampled":
            raise ValueError(
                f"MultiViewConfig: averaged items stand against sampled ones, got negatives={self.negatives!r}; take "
                "negatives='sampled'"
            )


@dataclass(frozen=True)
class ViewSizes(TowerSizes):
    """What the towers are built for.

    Attributes:
        domains: names, ascending; each has a tower.
    """

    domains: tuple[str, ...] = ONE_DOMAIN
