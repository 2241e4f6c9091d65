"""DSSM and two towers: the softmax of a user's and an item's vectors, each made of any columns by a network.

Paper: Huang, He, Gao, Deng, Acero, Heck 2013, "Learning Deep Structured Semantic Models for Web Search using
Clickthrough Data" (CIKM).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deeprec.models._tower_config import TowerConfig
from deeprec.models._tower_model import TowerModel


@dataclass(frozen=True)
class DSSMConfig(TowerConfig):
    """Attributes: those of `TowerConfig`."""


class DSSM(TowerModel):
    """softmax of gamma s(f(x_u), g(x_i)) over candidates i, with separate towers f and g."""

    name = "dssm"
    config_class: ClassVar[type[TowerConfig]] = DSSMConfig
    config: DSSMConfig
