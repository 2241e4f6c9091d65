"""Deep content-based music recommendation: a network from the sound of an item to its factors of ALS.

Paper: van den Oord, Dieleman, Schrauwen 2013, "Deep content-based music recommendation" (NIPS), sections 3 to 5.
Deviations: by default an item that somebody met keeps its own factors, and only the others have those that the network
hears (`hybrid`). Each epoch is a sweep of ALS (`deeprec.models.als`, with equal confidences) and some passes over the
contents, so that the validation part chooses both at once. Sounds go into `AudioCNN`, whose mel spectrogram has 64
bands; vectors that are there already (`features`), of sounds or of anything else, into a network of full layers. Adam.
Without either it is ALS.
Defaults: the mean squared error, which the paper finds better than the weighted error of predictions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from deeprec.batches.content_sweeps import ClipContents, ContentBatch, Contents, ContentsAndSides, VectorContents
from deeprec.batches.sides import SideBatch, Sides
from deeprec.config import GRADIENT_OPTIONS, Only, TrainConfig, at_least, one_of
from deeprec.contract import RETRIEVES, SIMILAR_ITEMS, Schema
from deeprec.data import IdMap, Interactions
from deeprec.data.media.decoders import AudioDecoder
from deeprec.data.media.files import MediaFiles
from deeprec.device import to_device
from deeprec.kernels.als_solve import als_solve
from deeprec.kernels.embedding import embedding
from deeprec.kernels.sums import sum_rows
from deeprec.models._item_vectors import scaled, scales_of, vector_parts
from deeprec.models._new_items import growing, require_new_items
from deeprec.models.als import ALS
from deeprec.models.base import Recommender
from deeprec.nn.audio_cnn import AudioCNN
from deeprec.nn.mlp import MLP
from deeprec.nn.scoring import DotScorer
from deeprec.surroundings import trained

if TYPE_CHECKING:
    from typing_extensions import Self

_OF_VECTORS, _OF_SOUNDS = ("layers", "dropout"), ("folder", "rate", "seconds", "window")
_OF_CONTENT = ("lr", "batch_size", "weight_decay", "clip_norm", "passes", "loss", "hybrid")
_WINDOWS_A_STEP = 256


def _has_content(config: Any) -> bool:
    return bool(config.features or config.audio)


@dataclass(frozen=True)
class DeepMusicConfig(TrainConfig):
    """Attributes:
    factors: width D of the vectors, >= 1.
    alpha, l2: of ALS: an interaction has the confidence 1 + alpha, everything unseen 1; the regulariser; > 0.
    features: columns of the item table, of lists of fractions or of numbers, that say what is in an item.
    audio: instead of these, its column of keys of sounds.
    folder: where the sounds lie, a folder or an uncompressed .tar; "": the current one.
    rate, seconds: samples a second that sounds are brought to, and how much of each is heard, from its beginning.
    window: seconds of a part that is learned from; factors of an item are means over its parts. > 0.
    layers, dropout: of the network of vectors: widths of its layers, each >= 1; share that is dropped, in [0, 1).
    loss: "mse", of the factors, or "wpe", the weighted error of ALS with the factors that the network gives.
    hybrid: whether items that somebody met have their own factors; else all have those of the network.
    passes: over the contents in an epoch, >= 1.
    batch_size: items a step, >= 1.
    epochs: sweeps of ALS.
    """

    unused: ClassVar[tuple[str, ...]] = tuple(
        name for name in GRADIENT_OPTIONS if name not in ("epochs", "patience", "l2", *_OF_CONTENT)
    )
    optimizers: ClassVar[tuple[str, ...]] = ("adam",)
    conditions: ClassVar[tuple[Only, ...]] = (
        Only(_OF_CONTENT, "features or audio", _has_content),
        Only(_OF_VECTORS, "features", lambda config: bool(config.features)),
        Only(_OF_SOUNDS, "audio", lambda config: bool(config.audio)),
    )

    factors: int = 64
    alpha: float = 20.0
    l2: float = 40.0
    features: tuple[str, ...] = ()
    audio: str = ""
    folder: str = ""
    rate: int = 16_000
    seconds: float = 30.0
    window: float = 3.0
    layers: tuple[int, ...] = (256,)
    dropout: float = 0.2
    loss: str = "mse"
    hybrid: bool = True
    passes: int = 5
    batch_size: int = 128
    epochs: int = 15
    patience: int = 5
    refit: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("factors", "rate", "passes"):
            at_least(self, name, 1)
        for name in ("alpha", "l2", "seconds", "window"):
            if not getattr(self, name) > 0:
                raise ValueError(f"DeepMusicConfig: {name} must be > 0, got {getattr(self, name)}")
        if self.features and self.audio:
            raise ValueError(
                f"DeepMusicConfig: features and audio do not go together, got {self.features} and {self.audio!r}; make "
                "vectors of the sounds with `deeprec features extract`"
            )
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"DeepMusicConfig: features must name each column once, got {self.features}")
        if any(width < 1 for width in self.layers):
            raise ValueError(f"DeepMusicConfig: layers must be widths >= 1, got {self.layers}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"DeepMusicConfig: dropout must lie in [0, 1), got {self.dropout}")
        one_of(self, "loss", ("mse", "wpe"))


@dataclass(frozen=True)
class DeepMusicSizes(Schema):
    """What the model is built for.

    Attributes:
        widths: numbers of each column of `features`.
    """

    widths: tuple[int, ...] = ()


class DeepMusic(Recommender):
    """score(u, i) = x_u . y_i, and y_i the network's of the content of i where nobody met it.

    Buffers: `als.*`, those of ALS; `heard` [num_items, D], what the network makes of each item; `is_met` [num_items,
    1]; `spread`, the root of the mean square of the factors, the unit of the network.
    """

    name = "deep-music"
    config_class: ClassVar[type[TrainConfig]] = DeepMusicConfig
    config: DeepMusicConfig
    capabilities: ClassVar[frozenset[str]] = Recommender.capabilities | {RETRIEVES, SIMILAR_ITEMS}
    takes: ClassVar[frozenset[str]] = Recommender.takes | {"item_features"}
    trains_on_whole_rows: ClassVar[bool] = True
    sizes_class: ClassVar[type[Any]] = DeepMusicSizes

    # -- the data ----------------------------------------------------------------------------------------------------

    def features_taken(self) -> tuple[str, ...]:
        """The item table, where the options name a column."""
        return ("item_features",) if _has_content(self.config) else ()

    def schema_for(self, data: Interactions) -> DeepMusicSizes:
        """Sizes, with the widths of the columns.

        Raises:
            ValueError: a column that is not there, or a vector that is not known or finite for every item.
        """
        widths = ()
        if self.config.audio:
            _keys_of(data.item_features, self.config.audio)
        else:
            parts = vector_parts(data.item_features, self.config.features, data.item_ids)
            widths = tuple(part.shape[1] for part in parts)
        return DeepMusicSizes(data.num_users, data.num_items, widths=widths)

    # -- the parameters ----------------------------------------------------------------------------------------------

    def build(self, sizes: Schema, generator: torch.Generator | None = None) -> Self:
        """Create the parameters; a plain `Schema` is that of a model without vectors."""
        if type(sizes) is Schema:
            sizes = DeepMusicSizes(sizes.num_users, sizes.num_items)
        return super().build(sizes, generator)

    def _build(self, schema: DeepMusicSizes, generator: torch.Generator | None) -> None:
        config = self.config
        if len(schema.widths) != len(config.features):
            raise ValueError(
                f"deep-music: schema must have a width for each of {config.features}, got {schema.widths}; call "
                "fit(data)"
            )
        plain = Schema(schema.num_users, schema.num_items)
        self.als = ALS(plain, factors=config.factors, alpha=config.alpha, l2=config.l2, generator=generator)
        self.network: nn.Module | None = None
        if config.audio:
            self.network = AudioCNN(config.factors, sample_rate=config.rate, generator=generator)
        elif config.features:
            self.network = MLP(
                sum(schema.widths),
                config.layers,
                out_features=config.factors,
                dropout=config.dropout,
                generator=generator,
            )
        self.register_buffer("heard", torch.zeros(schema.num_items, config.factors))
        self.register_buffer("is_met", torch.zeros(schema.num_items, 1))
        self.register_buffer("centers", torch.zeros(sum(schema.widths)))
        self.register_buffer("scales", torch.ones(len(schema.widths)))
        self.register_buffer("spread", torch.ones(()))
        self.heard: Tensor
        self.is_met: Tensor
        self.centers: Tensor
        self.scales: Tensor
        self.spread: Tensor
        self._gram: Tensor | None = None

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Those of the network; the factors are solved for."""
        return {} if self.network is None else super().parameter_groups()

    def begin_from(self, weights: Mapping[str, Tensor], data: Any) -> None:
        """As every model; later sweeps begin at the factors that there are."""
        super().begin_from(weights, data)
        self.als.item_gram.copy_(self.als.item_factors.T @ self.als.item_factors)

    # -- training ----------------------------------------------------------------------------------------------------

    def batches(self, train: Interactions, seed: int) -> ContentsAndSides:
        """Whole rows of users and of items, then contents."""
        sides = self.als.batches(train, seed)
        assert isinstance(sides, Sides)
        self.is_met.copy_(torch.from_numpy(train.item_counts() > 0).unsqueeze(1))
        offsets, items = train.csr()
        users = np.repeat(np.arange(train.num_users, dtype=np.int32), np.diff(offsets))
        counts = np.bincount(items, minlength=train.num_items)
        by_item = np.concatenate([[0], counts.cumsum()]).astype(np.int64), users[np.argsort(items, kind="stable")]
        return ContentsAndSides(
            sides,
            self._contents(train),
            by_item,
            passes=self.config.passes,
            batch_size=self.config.batch_size,
            seed=seed,
            device=self.device,
        )

    def _contents(self, train: Interactions) -> Contents | None:
        config = self.config
        if config.audio:
            return self._clips(_keys_of(train.item_features, config.audio), train.item_ids)
        if not config.features:
            return None
        parts = vector_parts(train.item_features, config.features, train.item_ids)
        if self.earlier is None:  # later rows go on with the scales that the network was trained for
            centers, scales = scales_of(parts, train.item_counts() > 0)
            self.centers.copy_(centers)
            self.scales.copy_(scales)
        return VectorContents(scaled(parts, self.centers, self.scales).to(self.heard.dtype))

    def _clips(self, keys: list[str | None], ids: IdMap) -> ClipContents:
        config = self.config
        decoder = AudioDecoder(config.rate, config.seconds)
        return ClipContents(keys, MediaFiles(config.folder), decoder, config.window, ids.values.to_list())

    def _network(self, values: Tensor, lengths: Tensor | None) -> Tensor:
        """[w, D] in the unit of the factors."""
        assert self.network is not None
        vectors: Tensor = self.network(values) if lengths is None else self.network(values, lengths)
        return vectors * self.spread

    def loss(self, batch: ContentBatch) -> Tensor:
        """Mean over the items of the squared error of the factors, in their unit, or of the weighted error of the
        predictions, section 4.2; the part of the latter that no factor of an item changes is left out."""
        predicted = self._network(batch.values, batch.lengths)
        if self.config.loss == "mse":
            errors = (predicted - self.als.item_factors[batch.items]) / self.spread
            return errors.square().mean()
        users, alpha = self.als.user_factors, self.config.alpha
        gram = self._gram if self._gram is not None else users.T @ users
        owners = torch.repeat_interleave(
            torch.arange(len(batch), device=users.device), batch.offsets.diff(), output_size=len(batch.users)
        )
        scores = (embedding(predicted, owners, sparse_grad=False) * users[batch.users]).sum(1)
        observed = (1 + alpha) * (1 - scores).square() - scores.square()
        total: Tensor = ((predicted @ gram) * predicted).sum() + observed.sum()
        return total / len(batch)

    def backward(self, batch: ContentBatch | SideBatch) -> Tensor:
        """The rows of a side solved, the gradients of the network, or what it makes of items, kept."""
        if isinstance(batch, SideBatch):
            self._gram = None
            loss = self.als.backward(batch)
            if batch.is_last and not batch.of_users:
                with torch.no_grad():
                    squares = (self.als.item_factors.square() * self.is_met).sum()
                    self.spread.copy_((squares / (self.is_met.sum() * self.config.factors)).sqrt().clamp(min=1e-6))
            return loss
        if batch.learns:
            if self._gram is None and self.config.loss == "wpe":
                self._gram = self.als.user_factors.T @ self.als.user_factors
            return super().backward(batch)
        assert self.network is not None
        was_training = self.network.training
        self.network.eval()
        self.heard[batch.items] = self._heard(batch.values, batch.lengths, batch.owners, len(batch))
        self.network.train(was_training)
        return self.heard.new_zeros(())

    @torch.no_grad()
    def _heard(self, values: Tensor, lengths: Tensor | None, owners: Tensor, count: int) -> Tensor:
        """[count, D] means over the windows of each item."""
        every = [None] * len(values) if lengths is None else lengths.split(_WINDOWS_A_STEP)
        windows = zip(values.split(_WINDOWS_A_STEP), every, strict=False)
        rows = torch.cat([self._network(part, size) for part, size in windows])
        if lengths is None:
            return rows
        sums = sum_rows(torch.cat([rows, rows.new_ones(len(rows), 1)], 1), owners, count)
        return sums[:, :-1] / sums[:, -1:]

    # -- scores ------------------------------------------------------------------------------------------------------

    def _item_rows(self) -> Tensor:
        """[num_items, D]."""
        if self.network is None:
            return self.als.item_factors
        if not self.config.hybrid:
            return self.heard
        return torch.where(self.is_met > 0, self.als.item_factors, self.heard)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of pairs of internal ids; shapes broadcast."""
        self.require_built()
        return (self.als.user_factors[users.long()] * self._item_rows()[items.long()]).sum(-1)

    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        return (self.als.user_factors[users.long()],)

    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        """The exact solution for new users, with the vectors that items are scored by."""
        values = (self.config.alpha * self.als.usual_value).expand(len(items))
        offsets, gram = to_device(offsets, items.device), self.als.item_gram
        return (als_solve(offsets, items, values, self._item_rows(), ridge=self.config.l2, gram=gram).rows,)

    def scorer(self, state: tuple[Tensor, ...]) -> DotScorer:
        return DotScorer(state[0], self._item_rows())

    def item_vectors(self) -> Tensor:
        self.require_built()
        return self._item_rows()

    @trained
    @torch.no_grad()
    def add_items(self, items: Any) -> Self:
        """Items that came after the training, with the factors of their content: they are recommended from now on.

        Args:
            items: frame with item_id, none of them known, and the columns of `features`, or that of `audio`.
        Returns:
            the model; `save` keeps them, and an index that it has takes them in.
        Raises:
            ValueError: a model without content, a column that is missing, an id that is known or comes twice.
        """
        frame, item_ids = require_new_items(self, items)
        if self.network is None:
            raise ValueError("add_items: deep-music knows new items by their content; train it with features or audio")
        if not len(frame):
            return self
        ids = IdMap(frame["item_id"], "item")
        contents: Contents
        if self.config.audio:
            contents = self._clips(_keys_of(frame, self.config.audio), ids)
        else:
            parts = vector_parts(frame, self.config.features, ids)
            widths = tuple(part.shape[1] for part in parts)
            if widths != self.require_built().widths:
                raise ValueError(f"add_items: {self.config.features} must have {self.require_built().widths} numbers, "
                                 f"got {widths}; make them as those that were trained on")  # fmt: skip
            contents = VectorContents(scaled(parts, self.centers, self.scales).to(self.heard.dtype))
        self.network.eval()
        rows = []
        for part in torch.arange(len(frame)).split(self.config.batch_size):
            values, lengths, owners = contents.all(part.numpy())
            values, places = (to_device(each, self.device) for each in (values, torch.from_numpy(owners)))
            lengths = None if lengths is None else to_device(lengths, self.device)
            rows.append(self._heard(values, lengths, places, len(part)))
        with growing(self, item_ids):
            nothing = self.heard.new_zeros(len(frame), self.config.factors)
            self.heard = torch.cat([self.heard, *rows])
            self.is_met = torch.cat([self.is_met, nothing[:, :1]])
            self.als.item_factors = torch.cat([self.als.item_factors, nothing])
        return self


def _keys_of(table: pl.DataFrame | None, column: str) -> list[str | None]:
    """The keys of the items' sounds."""
    if table is None or column not in table.columns:
        known = "no table of items" if table is None else f"columns {', '.join(table.columns)}"
        raise ValueError(f"deep-music: audio must be a column of the item table, got {column!r} and {known}")
    keys: list[str | None] = table.get_column(column).cast(pl.String).to_list()
    return keys
