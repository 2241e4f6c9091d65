"""NeuMF: GMF and MLP with embeddings of their own, fused in the last layer.

Paper: He et al. 2017, "Neural Collaborative Filtering" (arXiv 1708.05031), section 3.4, eq. 12; pre-training 3.4.1.
Official code: github.com/hexiangnan/neural_collaborative_filtering (NeuMF.py).
Deviations: none in the network. The paper does not state the learning rate of the SGD stage after pre-training; it is
an option here (`lr`). The authors' README runs that stage with Adam; `optimizer=adam` does so.
Where not to use it: on few interactions an item (below about 20) item-knn and ease rank better.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from deeprec.config import ByData, Only, TrainConfig, make_config, unused_options
from deeprec.contract import Schema
from deeprec.models._adversarial import AdversarialConfig
from deeprec.models.base import Recommender
from deeprec.models.gmf import GMF, GMFConfig
from deeprec.models.mlp import MLP, MLPConfig
from deeprec.models.ncf import PATIENCE, NCFRecommender, mlp_layers
from deeprec.nn.ncf import NCFNetwork


@dataclass(frozen=True)
class NeuMFConfig(AdversarialConfig):
    """Attributes:
    factors: width of the last hidden layer and, unless `gmf_factors` says otherwise, of the GMF embeddings, >= 1.
    gmf_factors: width of the GMF embeddings; 0 means `factors`.
    num_layers: hidden layers of the MLP half, >= 0.
    layout: "code" (embeddings twice as wide, as the authors' code) or "paper".
    layers: explicit MLP widths as the authors' `--layers`, e.g. (64, 32, 16, 8), instead of num_layers and layout;
        factors is then the width of the GMF embeddings.
    pretrain: train GMF and MLP first, start from their weights, then train with this config's optimizer.
    alpha: weight of GMF in the output layer after pre-training, in [0, 1] (paper: 0.5).
    pretrain_epochs, pretrain_lr, pretrain_optimizer, pretrain_batch_size, pretrain_weight_decay: each as the
        option without pretrain_, of the GMF and the MLP stage; validation chooses the epoch of each.
    pretrain_gmf_l2: `l2` of the GMF stage, >= 0.
    """

    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("num_layers", "layout"), "layers=()", lambda config: not config.layers),
        Only(("factors",), "layers=() or gmf_factors=0", lambda config: not (config.layers and config.gmf_factors)),
        Only(
            (
                "pretrain_epochs",
                "pretrain_lr",
                "pretrain_optimizer",
                "pretrain_batch_size",
                "pretrain_weight_decay",
                "pretrain_gmf_l2",
            ),
            "pretrain=True",
            lambda config: config.pretrain,
        ),
    )

    by_data: ClassVar[Mapping[str, ByData]] = PATIENCE

    factors: int = 8
    gmf_factors: int = 0
    num_layers: int = 3
    layout: str = "code"
    layers: tuple[int, ...] = ()
    pretrain: bool = False
    alpha: float = 0.5
    pretrain_epochs: int = 20
    pretrain_lr: float = 0.001
    pretrain_optimizer: str = "adam"
    pretrain_batch_size: int = 256
    pretrain_weight_decay: float = 0.0
    pretrain_gmf_l2: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.widths()
        if self.gmf_factors < 0:
            raise ValueError(f"NeuMFConfig: gmf_factors must be >= 0, got {self.gmf_factors}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"NeuMFConfig: alpha must lie in [0, 1], got {self.alpha}")
        self.pretrain_config(GMFConfig)

    def widths(self) -> tuple[int, ...]:
        """(2E, H_1, ..., H_L) of the MLP half."""
        return mlp_layers(self.factors, self.num_layers, self.layout, self.layers, owner="NeuMFConfig")

    def gmf_dim(self) -> int:
        """Width of the GMF half."""
        return self.gmf_factors or self.factors

    def pretrain_config(self, config_class: type[TrainConfig]) -> TrainConfig:
        """The config of the GMF or the MLP stage, trained as this config's `pretrain_*` fields say."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(TrainConfig)}
        for name in ("epochs", "lr", "optimizer", "batch_size", "weight_decay"):
            shared[name] = getattr(self, f"pretrain_{name}")
        if issubclass(config_class, GMFConfig):
            shared.update(factors=self.gmf_dim(), l2=self.pretrain_gmf_l2)
        else:
            shared["layers"] = self.widths()
        taken = {name: value for name, value in shared.items() if name not in unused_options(config_class)}
        return make_config(config_class, None, taken)


class NeuMF(NCFRecommender):
    """logit = h . [p_g * q_g ; MLP([p_m; q_m])] + b, He et al. 2017, eq. 12."""

    name = "neumf"
    config_class: ClassVar[type[TrainConfig]] = NeuMFConfig
    config: NeuMFConfig

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        self.network = NCFNetwork(
            schema.num_users,
            schema.num_items,
            gmf_dim=self.config.gmf_dim(),
            mlp_layers=self.config.widths(),
            generator=generator,
        )

    def warm_start(self, train_stage: Callable[[Recommender], Recommender]) -> bool:
        """Pre-train GMF and MLP with `train_stage` and start from their weights (section 3.4.1)."""
        if super().warm_start(train_stage):
            return True  # of NeuMF without perturbations, which was pre-trained itself
        if not self.config.pretrain:
            return False
        gmf = train_stage(GMF(config=self.config.pretrain_config(GMFConfig)))
        mlp = train_stage(MLP(config=self.config.pretrain_config(MLPConfig)))
        assert isinstance(gmf, GMF)
        assert isinstance(mlp, MLP)
        self.start_from(gmf, mlp)
        return True

    @torch.no_grad()
    def start_from(self, gmf: GMF, mlp: MLP) -> None:
        """Copy the halves; h becomes [alpha h_GMF ; (1 - alpha) h_MLP], and so the biases (the code has alpha 0.5)."""
        alpha = self.config.alpha
        mine = dict(self.network.named_parameters())
        for half in (gmf.network, mlp.network):
            for name, parameter in half.named_parameters():
                if not name.startswith("output."):
                    mine[name].copy_(parameter)
        h_gmf, h_mlp = gmf.network.output, mlp.network.output
        self.network.output.weight.copy_(torch.cat([alpha * h_gmf.weight, (1 - alpha) * h_mlp.weight], dim=1))
        self.network.output.bias.copy_(alpha * h_gmf.bias + (1 - alpha) * h_mlp.bias)
