"""CFN: ratings by a denoising autoencoder over item columns (V-CFN) or user rows (U-CFN), with side information.

Paper: Strub, Gaudel, Mary 2016, "Hybrid Recommender System based on Autoencoders" (DLRS, arXiv 1606.07659); the deep
model and the noises: Strub, Mary 2015, "Collaborative Filtering with Stacked Denoising AutoEncoders and Sparse Inputs".
Code: fstrub95/Autoencoders_cf.
Deviations: L2 acts on the rows of the tables that a batch touches, and the more strongly the rarer that is: on average
over the steps it is that of L2 on all rows at every step. The deep model's inner layers are pre-trained on uncorrupted
codes by Adam, where the authors add Gaussian noise and use SGD. A row without ratings has the global mean, the mean
hidden layer of the others and its own side information; a column without is predicted by the mean of the row. The
paper leaves both out. With `from_biases` (which `fit` chooses where nothing is said) biases take the place of the row's
mean, and the network learns what they leave: on few ratings it then is no worse than they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from deeprec.batches.corruption import Corrupt, Corruption
from deeprec.batches.ratings import RatingRows, RowBatch
from deeprec.config import OPTIMIZERS, Only, TrainConfig
from deeprec.contract import Schema
from deeprec.data import Interactions
from deeprec.data.interactions.features import feature_matrix
from deeprec.kernels.embedding_bag import BagPlan
from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.sampled_linear_loss import sampled_linear_loss
from deeprec.kernels.sparse_linear import sparse_linear
from deeprec.kernels.sums import add_rows
from deeprec.models._autoencoder import RatingAutoencoder
from deeprec.models._autoencoder_config import AutoencoderConfig
from deeprec.models._inner_layers import InnerLayers
from deeprec.models.base import Recommender

_LARGEST = 0.95  # of the way to where tanh ends: the logit of a rating at the limits


@dataclass(frozen=True)
class CFNConfig(AutoencoderConfig):
    """Attributes:
    side: "item" reconstructs item columns (V-CFN), "user" user rows (U-CFN).
    hidden: hidden units, >= 1.
    inner: (500,) for the authors' deep model 700-500-700; () for one hidden layer.
    features: columns of the data's item features (V) or user features (U) to use as side information: text, lists of
        text and whole numbers become indicators, fractions and lists of fractions are taken as they are.
    rating_range: smallest and largest rating there can be; None: those of the training ratings.
    alpha: weight of the squared errors of the corrupted entries, >= 0.
    beta: weight of the others, >= 0.
    hide: probability that an input is hidden, in [0, 1).
    gaussian: probability that an input gets normal noise, in [0, 1).
    noise_std: of that noise, on the scale -1 to 1, >= 0.
    salt_pepper: probability that an input becomes the smallest or the largest rating, in [0, 1).
    batch_size: item columns or user rows a step, >= 1; 0: all of them.
    l2: the loss is the mean over the rows of a step of the weighted sum of squared errors, plus l2 / 2 times the
        squared norm of all weights but the biases: the weight decay of the authors' code.
    """

    optimizers: ClassVar[tuple[str, ...]] = OPTIMIZERS
    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("noise_std",), "gaussian > 0", lambda config: config.gaussian > 0),
        Only(
            ("alpha",),
            "hide, gaussian or salt_pepper > 0",
            lambda config: max(config.hide, config.gaussian, config.salt_pepper) > 0,
        ),
    )

    hidden: int = 700
    features: tuple[str, ...] = ()
    alpha: float = 1.1078
    beta: float = 0.7203
    hide: float = 0.138
    gaussian: float = 0.0
    noise_std: float = 0.02
    salt_pepper: float = 0.0
    epochs: int = 15
    batch_size: int = 35
    lr: float = 0.0901
    lr_decay: float = 0.1762
    optimizer: str = "sgd"
    l2: float = 0.0251
    refit: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        shares = (self.hide, self.gaussian, self.salt_pepper)
        if min(shares) < 0 or not sum(shares) < 1:
            raise ValueError(
                f"{owner}: hide, gaussian and salt_pepper must be >= 0 and less than 1 together, got {shares}"
            )
        if min(self.alpha, self.beta, self.noise_std) < 0:
            raise ValueError(
                f"{owner}: alpha, beta and noise_std must be >= 0, got {self.alpha}, {self.beta} and {self.noise_std}"
            )
        if not self.beta and not (self.alpha and any(shares)):
            raise ValueError(
                f"{owner}: an entry must have a weight, got alpha={self.alpha}, beta={self.beta} and corruption "
                f"{shares}; take beta > 0, or alpha > 0 and hide > 0"
            )
        if self.weight_decay:
            raise ValueError(f"{owner}: weight_decay must be 0, got {self.weight_decay}; take l2")


class CFN(RatingAutoencoder):
    """nn(x, z) = tanh(W2 {tanh(W1 {x, z} + b1), z} + b2) over the columns or rows x of the ratings, section 3.

    A rating r stands in x as (r - middle) / half of the range, less the mean of its row; the loss is equation 6.
    """

    name = "cfn"
    config_class: ClassVar[type[TrainConfig]] = CFNConfig
    takes: ClassVar[frozenset[str]] = Recommender.takes | {"user_features", "item_features"}
    reach: ClassVar[float] = 2.0
    config: CFNConfig
    side_information: Tensor

    def schema_for(self, data: Interactions) -> Schema:
        """Sizes, with the side information that `features` names.

        Raises:
            ValueError: no ratings, one outside the range, or side information that is not there or incomplete.
        """
        sizes = super().schema_for(data)
        return dataclasses.replace(sizes, num_features=self._features_of(data).shape[1])

    def features_taken(self) -> tuple[str, ...]:
        """That of the side whose rows are encoded, where `features` names columns."""
        return (f"{self.config.side}_features",) if self.config.features else ()

    def _features_of(self, data: Interactions) -> Tensor:
        is_item = self.config.side == "item"
        frame, ids = (data.item_features, data.item_ids) if is_item else (data.user_features, data.user_ids)
        if not self.config.features:
            return torch.empty(len(ids), 0)
        return torch.from_numpy(feature_matrix(frame, self.config.features, ids))

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        config, features = self.config, schema.num_features
        rows, columns = self._sizes(schema)

        def uniform(count: int, width: int, fan_in: int) -> nn.Parameter:
            bound = fan_in**-0.5
            return nn.Parameter(torch.empty(count, width).uniform_(-bound, bound, generator=generator))

        self.encoder = uniform(columns, config.hidden, columns + features)
        self.encoder_features = uniform(features, config.hidden, columns + features)
        self.encoder_bias = nn.Parameter(uniform(1, config.hidden, columns + features).detach().squeeze(0))
        self.decoder = uniform(columns, config.hidden + features, config.hidden + features)
        self.decoder_bias = nn.Parameter(uniform(1, columns, config.hidden + features).detach().squeeze(0))
        self.layers: InnerLayers | None = None
        if config.inner:
            self.layers = InnerLayers(config.hidden, config.inner, features, torch.tanh, generator)
        self._build_shared(schema, config.hidden + features, has_means=True)
        self.register_buffer("side_information", torch.zeros(rows, features))

    def warm_start(self, train_stage: Callable[[Recommender], Recommender]) -> bool:
        """With `pretrain`: the model without inner layers first, then these, layer by layer."""
        if not self.config.pretrain:
            return self.config.from_biases  # its beginning, the biases, is a candidate
        shallow = train_stage(_ShallowCFN(config=self.config.shallow()))
        assert isinstance(shallow, CFN)
        self.side_information.copy_(shallow.side_information)
        self._start_from(shallow)
        return True

    def begin_from(self, weights: Mapping[str, Tensor], data: Interactions) -> None:
        """As every model; side information must mean what it meant.

        Raises:
            ValueError: that of known rows is another now.
        """
        known = weights["side_information"].cpu()
        if not torch.equal(self._features_of(data)[: len(known)], known):
            raise ValueError(
                f"cfn: fit_more: features of known {self.config.side}s must be as they were, without a new value of "
                "an indicator, got others; train anew"
            )
        super().begin_from(weights, data)

    # -- training ----------------------------------------------------------------------------------------------------

    def _corrupt(self) -> Corrupt:
        c = self.config
        return Corruption(c.hide, c.gaussian, c.noise_std, c.salt_pepper, corrupted_weight=c.alpha, other_weight=c.beta)

    def batches(self, train: Interactions, seed: int) -> RatingRows:
        """Item columns or user rows of the ratings."""
        self.side_information.copy_(self._features_of(train))
        rows = super().batches(train, seed)
        batch_share = min(1.0, (self.config.batch_size or rows.num_rows) / int((rows.lengths > 0).sum()))
        self._touched = 1 - (1 - batch_share) ** rows.column_counts.double()
        return rows

    def _targets(self, rows: RatingRows) -> Tensor:
        limits = self.config.rating_range or (float(rows.ratings.min()), float(rows.ratings.max()))
        if not limits[0] < limits[1]:
            raise ValueError(f"cfn: ratings of two values are needed, got {limits[0]:g} only; pass rating_range")
        self.limits.copy_(torch.tensor(limits))
        scaled, counts = self._scaled(rows.ratings), rows.counts
        every = torch.arange(rows.num_rows, device=counts.device)
        row_of = torch.repeat_interleave(every, counts, output_size=len(scaled))
        sums = torch.zeros(rows.num_rows, dtype=torch.float64, device=counts.device)
        add_rows(sums, row_of, scaled.double())
        assert self.means is not None
        self.means.copy_(torch.where(counts > 0, sums / counts.clamp(min=1), scaled.double().mean()))
        return scaled - self.means[row_of]

    def _scaled(self, ratings: Tensor) -> Tensor:
        low, high = self.limits
        scaled: Tensor = (2 * ratings - (low + high)) / (high - low)
        return scaled

    def _encode(
        self, offsets: Tensor, indices: Tensor, inputs: Tensor, features: Tensor, plan: BagPlan | None = None
    ) -> Tensor:
        """Codes {h, z} [b, hidden + P]."""
        inputs = inputs.to(self.encoder.dtype)
        sums = sparse_linear(
            offsets, indices, inputs, self.encoder, self.encoder_bias, sparse_grad=self.sparse_grad, plan=plan
        )
        codes = torch.tanh(torch.addmm(sums, features, self.encoder_features) if features.shape[1] else sums)
        codes = codes if self.layers is None else self.layers(codes, features)
        return torch.cat([codes, features], 1)

    def loss(self, batch: RowBatch) -> Tensor:
        """alpha and beta weighted sum of the squared errors; `backward` divides it by the number of rows."""
        self._before_loss(batch)
        features, wide = self.side_information[batch.rows], wide_dtype(self.decoder.dtype)
        total, _ = sampled_linear_loss(
            self._encode(batch.offsets, batch.indices, batch.inputs, features, batch.plan),
            self.decoder,
            self.decoder_bias,
            batch.offsets,
            batch.indices,
            batch.labels.to(wide),
            entry_weights=None if batch.weights is None else batch.weights.to(wide),
            activation="tanh",
            sparse_grad=self.sparse_grad,
            plan=batch.plan,
        )
        return total

    def backward(self, batch: RowBatch) -> Tensor:
        """Gradients of the mean over the batch's rows; returns the sum."""
        total = self.loss(batch)
        (total / len(batch.rows)).backward()
        for table in (self.encoder, self.decoder):
            grad = table.grad
            assert grad is not None
            if not grad.is_sparse:
                grad.add_(table.detach(), alpha=self.config.l2)
                continue
            rows = grad._indices()[0]
            strength = (self.config.l2 / self._touched[rows]).float().unsqueeze(1)
            grad._values().addcmul_(table.detach()[rows], strength)
        for weight in (self.encoder_features, *([] if self.layers is None else self.layers.weights)):
            if weight.grad is not None:
                weight.grad.add_(weight.detach(), alpha=self.config.l2)
        return total.detach()

    # -- predictions -------------------------------------------------------------------------------------------------

    def _encode_whole(self, batch: RowBatch) -> Tensor:
        return self._encode(batch.offsets, batch.indices, batch.inputs, self.side_information)

    def _cold_column(self) -> Tensor:
        return torch.zeros_like(self.center)  # the mean of the row alone

    def _encode_new(self, indices: Tensor, ratings: Tensor) -> tuple[Tensor, Tensor | None]:
        scaled = self._scaled(ratings)
        mean = scaled.mean().view(1)
        return self._encode_row(indices, scaled - mean), mean

    def _encode_row(self, indices: Tensor, shown: Tensor) -> Tensor:
        """Side information of a new row is not known: the mean of all."""
        features = self.side_information.mean(0, keepdim=True)
        bounds = torch.arange(2, device=indices.device) * len(indices)
        return self._encode(bounds, indices, shown, features)

    def _output(self, logits: Tensor) -> Tensor:
        return torch.tanh(logits)

    def _logit(self, outputs: Tensor) -> Tensor:
        return outputs.clamp(-_LARGEST, _LARGEST).atanh()

    def _rating_of(self, logits: Tensor, means: Tensor | None) -> Tensor:
        assert means is not None
        low, high = self.limits
        ratings: Tensor = (low + high) / 2 + (high - low) / 2 * (self._output(logits) + means)
        return ratings

    def _logit_of(self, ratings: Tensor, means: Tensor | None) -> Tensor:
        assert means is not None
        return self._logit(self._scaled(ratings) - means)

    def _ridge(self) -> float:
        # l2 / 2 goes with the mean over the rows of a step: rows times as much with their sum.
        return self.config.l2 / 2 * len(self.codes)


class _ShallowCFN(CFN):
    """The stage before the deep model; a name of its own keeps their chosen epochs apart."""

    name = "cfn-shallow"
