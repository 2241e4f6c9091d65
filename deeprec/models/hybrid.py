"""Hybrid: blends any fitted models, by weights, ranks or a small network that are learnt on the validation part.

Papers: Burke 2002, "Hybrid Recommender Systems: Survey and Experiments" (UMUAI 12), weighted hybrids; Cormack, Clarke,
Buettcher 2009, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods" (SIGIR), eq. 1.
Deviations: scores are standardised for each user over what the user has not met, so that models of other scales can be
blended; weights begin as those with the largest likelihood of the validation items, by a softmax over all items that
their users have not met, and are searched from there by the NDCG of these users at the protocol's first cutoff; in
reciprocal rank fusion equal scores share their best rank.
The models must have been trained on the same training part as the blend, and on nothing of its validation part: `fit`
compares checksums of data and split, and refuses others. All of them lie in the folder of the blend.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec._suggest import did_you_mean
from deeprec.config import GRADIENT_OPTIONS, Only, TrainConfig, at_least, one_of, taken_options
from deeprec.contract import NEW_USERS, RECOMMENDS, Queries, Schema
from deeprec.data import Interactions
from deeprec.data.interactions.features import feature_matrix
from deeprec.device import to_device
from deeprec.evaluate import protocol_from_dict, read_card
from deeprec.kernels.sums import take
from deeprec.models.history import HistoryRecommender
from deeprec.nn.scoring import AnyScorer, BlockScorer, as_sets, owners_of, rows_of, score_rows
from deeprec.registry import config_class, create, model_class, names
from deeprec.serve.folder import load
from deeprec.train import fit

if TYPE_CHECKING:
    from typing_extensions import Self

BLENDS = ("weights", "ranks", "network")
_MOST_SCORES = 1 << 26  # that are learnt from: users x models x items
_MOST_HIDDEN = 1 << 24  # values of the network's hidden layer in a step
_STEPS = 100  # of L-BFGS at most
_SEARCH = (0.4, 0.2, 0.1, 0.05)  # added to one weight of a sum of 1
_CHOOSING = 5  # of so many users one chooses the epoch of the network


@dataclass(frozen=True)
class HybridConfig(TrainConfig):
    """Attributes:
    members: what is blended: names of models, which `fit` trains with their usual options on the training part, and
        folders of models that were trained on it; () where fitted models are passed.
    blend: "weights" of standardised scores, learnt; "ranks", reciprocal rank fusion, with nothing to learn; "network",
        the weights and beside them a network over the standardised scores and the columns of the user.
    rank_constant: k of 1 / (k + rank), >= 0.
    l2: l2 / 2 times the squares of the weights is added to their mean loss, >= 0.
    network_width: width of the network's hidden layer, >= 1.
    user_columns: columns of the user table that the network sees; () for none.
    network_epochs, network_lr: passes over the users, >= 1, of which the best counts, and learning rate, > 0.
    """

    unused: ClassVar[tuple[str, ...]] = (
        *(name for name in GRADIENT_OPTIONS if name != "l2"),
        "refit",
    )
    conditions: ClassVar[tuple[Only, ...]] = (
        Only(("rank_constant",), "blend='ranks'", lambda config: config.blend == "ranks"),
        Only(("l2",), "blend='weights' or 'network'", lambda config: config.blend != "ranks"),
        Only(
            ("network_width", "network_epochs", "network_lr", "user_columns"),
            "blend='network'",
            lambda config: config.blend == "network",
        ),
    )

    members: tuple[str, ...] = ("item-knn", "popularity")
    blend: str = "weights"
    rank_constant: float = 60.0
    l2: float = 0.001
    network_width: int = 16
    user_columns: tuple[str, ...] = ()
    network_epochs: int = 10
    network_lr: float = 0.003

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "blend", BLENDS)
        at_least(self, "rank_constant", 0)
        at_least(self, "network_width", 1)
        at_least(self, "network_epochs", 1)
        if not self.network_lr > 0:
            raise ValueError(f"HybridConfig: network_lr must be > 0, got {self.network_lr}; 0.003 is usual")
        for name in ("members", "user_columns"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise ValueError(f"HybridConfig: {name} must name each once, got {given}")
        if len(self.members) == 1:
            raise ValueError(f"HybridConfig: members must be two or more, got {self.members}; name another model")
        for each in self.members:
            if each not in names() and os.sep not in each and not Path(each).exists():
                raise ValueError(
                    f"HybridConfig: members must be names of models or folders, got {each!r}; "
                    f"{did_you_mean(each, names())}"
                )
            if each in names() and RECOMMENDS not in model_class(each).capabilities:
                raise ValueError(f"HybridConfig: members must recommend items, got {each!r}; leave it out")
            if each == Hybrid.name:
                raise ValueError("HybridConfig: members must not be 'hybrid' itself; pass the folder of a fitted one")


@dataclass(frozen=True)
class HybridSizes(Schema):
    """What the model is built for; `num_features` are the numbers of the user's columns.

    Attributes:
        num_members: models, >= 2.
    """

    num_members: int = 2


class _Examples(NamedTuple):
    """What a blend is learnt from.

    Attributes:
        scores: [M, b, N], standardised; is_met: [b, N], bool, what cannot be recommended.
        columns: [b, P], of the users.
        bounds: [b + 1], on the CPU, and liked: [nnz], int64: the validation items of each user.
        cutoff: K of the NDCG.
    """

    scores: Tensor
    is_met: Tensor
    columns: Tensor
    bounds: Tensor
    liked: Tensor
    cutoff: int

    def of(self, part: slice) -> tuple[Tensor, Tensor]:
        """Scores and columns of these users."""
        return self.scores[:, part], self.columns[part]

    def _liked_of(self, part: slice) -> tuple[Tensor, Tensor]:
        """Rows, from the first of these users on, and items."""
        first, last = int(self.bounds[part.start]), int(self.bounds[part.stop])
        bounds = self.bounds[part.start : part.stop + 1] - first
        return owners_of(bounds, self.liked.device), self.liked[first:last]

    def loss(self, blended: Tensor, part: slice) -> Tensor:
        """Mean of -ln softmax, over all that was not met, at the validation items of these users."""
        rows, items = self._liked_of(part)
        normal = blended.masked_fill(self.is_met[part], -torch.inf).logsumexp(1)
        return (take(normal, 0, rows) - blended[rows, items]).sum() / max(len(items), 1)

    def gains(self, blended: Tensor, part: slice) -> Tensor:
        """NDCG [b] of these users."""
        rows, items = self._liked_of(part)
        is_liked = torch.zeros_like(self.is_met[part])
        is_liked.index_put_((rows, items), is_liked.new_ones(()))
        k = min(self.cutoff, blended.shape[1])
        top = blended.masked_fill(self.is_met[part], -torch.inf).topk(k, 1).indices
        discounts = 1 / torch.arange(2, k + 2, device=top.device).log2()
        counts = self.bounds[part.start : part.stop + 1].diff().clamp(max=k)
        ideal = to_device(discounts.cumsum(0).cpu()[counts - 1], top.device)
        return (is_liked.gather(1, top) * discounts).sum(1) / ideal


def _searched(weights: Tensor, examples: _Examples) -> Tensor:
    """Weights [M] with a larger NDCG: the best of these, equal ones and each model alone, then by single steps."""

    def reached(these: Tensor) -> float:
        every = slice(0, examples.scores.shape[1])
        return float(examples.gains(torch.einsum("m,mbn->bn", these, examples.scores), every).mean())

    size, alone = weights.abs().sum().clamp(min=1e-12), torch.eye(len(weights), device=weights.device)
    candidates = [weights / size, torch.full_like(weights, 1 / len(weights)), *alone.unbind()]
    values = [reached(each) for each in candidates]
    best = max(values)
    chosen = candidates[values.index(best)]
    for step in _SEARCH:
        for direction in (*alone.unbind(), *(-alone).unbind()):
            moved = chosen + step * direction
            moved = moved / moved.abs().sum().clamp(min=1e-12)
            if (value := reached(moved)) > best:
                best, chosen = value, moved
    return chosen


class Hybrid(HistoryRecommender):
    """score(u, i) = sum_m w_m z_m(u, i), z the standardised scores of the models, or a function of these.

    A state is offsets [b + 1] on the CPU and items [nnz], what each user met, then the states of the models.

    Args:
        models: fitted models, in place of `members`; or the sizes, as of every model.
        config, schema, generator, **options: as of every model.
    Attributes:
        models: those that are blended.
    """

    name = "hybrid"
    config_class: ClassVar[type[TrainConfig]] = HybridConfig
    capabilities: ClassVar[frozenset[str]] = frozenset({RECOMMENDS, NEW_USERS})
    learns_from_validation: ClassVar[bool] = True
    takes: ClassVar[frozenset[str]] = frozenset({"user_features"})
    keeps: ClassVar[tuple[str, ...]] = (*HistoryRecommender.keeps, "models")
    sizes_class: ClassVar[type[Any]] = HybridSizes
    config: HybridConfig
    weights: Tensor
    user_values: Tensor

    def __init__(
        self,
        models: Sequence[Any] | Schema | None = None,
        config: TrainConfig | None = None,
        *,
        schema: Schema | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        if isinstance(models, Schema):
            models, schema = None, models
        given: list[Any] = [] if models is None else list(models)
        if given:
            _require_models(given)
            options = {"members": (), **options}
        self.models: list[Any] = []
        self._task: Any = None
        self._seed = 0
        super().__init__(schema, config, generator=generator, **options)
        self.models = given or self.models

    # -- the data ----------------------------------------------------------------------------------------------------

    def task_for(self, data: Any, protocol: Any, schema: Any = None) -> Any:
        """Ranking the interactions of `data`."""
        self._task = super().task_for(data, protocol, schema)
        return self._task

    def features_taken(self) -> tuple[str, ...]:
        """The user table, where `user_columns` names columns."""
        return ("user_features",) if self.config.user_columns else ()

    def schema_for(self, data: Interactions) -> HybridSizes:
        """Sizes."""
        width = self._columns_of(data).shape[1]
        return HybridSizes(data.num_users, data.num_items, width, num_members=self._num_members())

    def _num_members(self) -> int:
        return len(self.config.members) or len(self.models)

    def _columns_of(self, data: Interactions) -> np.ndarray:
        """[num_users, P] columns, each less its mean and over its deviation."""
        if not self.config.user_columns:
            return np.zeros((data.num_users, 0), np.float32)
        values = feature_matrix(data.user_features, self.config.user_columns, data.user_ids).astype(np.float64)
        scaled = (values - values.mean(0)) / np.maximum(values.std(0), 1e-6)
        matrix: np.ndarray = scaled.astype(np.float32)
        return matrix

    # -- the parameters ----------------------------------------------------------------------------------------------

    def build(self, sizes: Schema, generator: torch.Generator | None = None) -> Self:
        """Create the parameters; a plain `Schema` is for as many models as `members` names."""
        if type(sizes) is Schema:
            sizes = HybridSizes(sizes.num_users, sizes.num_items, sizes.num_features, num_members=self._num_members())
        self._seed = 0 if generator is None else generator.initial_seed()
        return super().build(sizes, generator)

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        super()._build(schema, generator)
        assert isinstance(schema, HybridSizes)
        count, config = schema.num_members, self.config
        if count < 2:
            raise ValueError(f"hybrid: two models or more are blended, got {count}; pass Hybrid([first, second])")
        self.register_buffer("weights", torch.full((count,), 1 / count))
        self.register_buffer("user_values", torch.zeros(schema.num_users, schema.num_features))
        plain = [each for each in config.members if each in names() and model_class(each).sizes_class is Schema]
        if plain and len(plain) == count:  # to be trained; of others the data says what they are built for
            self.models = [create(each).build(Schema(schema.num_users, schema.num_items), generator) for each in plain]
        self.network: nn.Sequential | None = None
        if config.blend == "network":
            first, last = (
                nn.Linear(count + schema.num_features, config.network_width),
                nn.Linear(config.network_width, 1),
            )
            nn.init.xavier_uniform_(first.weight, generator=generator)
            for tensor in (first.bias, last.weight, last.bias):
                nn.init.zeros_(tensor)
            self.network = nn.Sequential(first, nn.Tanh(), last).requires_grad_(False)

    def _build_weights(self, schema: Schema) -> None:
        """They are of the models."""

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        for model in self.models:
            model._apply(fn, recurse)
        result: Self = super()._apply(fn, recurse)
        return result

    # -- training ----------------------------------------------------------------------------------------------------

    def fit_directly(self, train: Interactions) -> None:
        """The models where they are to be trained, and what blends them, on the validation part of the task of `fit`.

        By hand, without a task, equal weights of models that are there or are fitted directly.
        """
        task, self._task = self._task, None
        super().fit_directly(train)
        if task is None:
            for model in self.models if self.config.members else ():
                if model.trains_by_gradient:
                    raise ValueError(f"hybrid: {model.name} is trained in steps; call fit(data, protocol=...)")
                model.fit_directly(train)
            return
        self.models = self._members(task) if self.config.members else self.models
        for model in self.models:
            require_same_split(model, task)
            model.to(self.device).eval()
        if self.config.user_columns:
            self.user_values.copy_(torch.from_numpy(self._columns_of(task.data)))
        if self.config.blend == "ranks":
            return
        validation = task.split.validation
        if not len(validation):
            raise ValueError(
                f"hybrid: blend={self.config.blend!r} is learnt on validation rows, got none of {task.name!r}; take a "
                "protocol with a validation part, or blend='ranks'"
            )
        self._learn(validation, task.protocol.cutoffs[0])

    def _fit_weights(self, *_: Any) -> None:
        """They are of the models."""

    def _members(self, task: Any) -> list[Any]:
        """Those that `members` names: trained here, or loaded."""
        made: list[Any] = []
        if hasattr(task, "start"):  # of `fit_more`, whose weights are the blend's: the models begin anew
            task = copy.copy(task)
            task.start = None
        for each in self.config.members:
            if each in names():
                options = {"refit": False} if "refit" in taken_options(config_class(each)) else {}
                made.append(fit(create(each, **options), task, seed=self._seed, device=str(self.device),
                                baselines=False).model)  # fmt: skip
            else:
                made.append(load(each, device=str(self.device)))
                made[-1].fitted_card = read_card(each)
        _require_models(made)
        return made

    def _learn(self, validation: Interactions, cutoff: int) -> None:
        """The weights, and the network around them."""
        schema = self.require_built()
        offsets, items = validation.csr()
        users = np.flatnonzero(np.diff(offsets))
        most = max(2, _MOST_SCORES // (schema.num_items * schema.num_members))
        if len(users) > most:
            users = np.sort(np.random.default_rng(self._seed).choice(users, most, replace=False))
        bounds, liked = rows_of((torch.from_numpy(offsets), torch.from_numpy(items)), torch.from_numpy(users))
        asked = to_device(torch.from_numpy(users), self.device)
        state = self.encode(Queries(asked))
        scores, is_met = self._standardised(self._scorers(state), state[0], state[1], 0, len(users))
        columns = self.user_values[asked]
        examples = _Examples(scores, is_met, columns, bounds, to_device(liked.long(), self.device), cutoff)
        with torch.enable_grad():
            self.weights.copy_(self._likeliest(examples))
            self.weights.copy_(_searched(self.weights, examples))
            if self.network is not None:
                self._learn_network(examples)

    def _likeliest(self, examples: _Examples) -> Tensor:
        """Weights [M] of the least loss; a convex problem."""
        weights = torch.zeros_like(self.weights, requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=_STEPS, tolerance_change=1e-10, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            blended = torch.einsum("m,mbn->bn", weights, examples.scores)
            loss = examples.loss(blended, slice(0, len(blended))) + self.config.l2 / 2 * weights.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return weights.detach()

    def _learn_network(self, examples: _Examples) -> None:
        """Adam on four fifths of the users; the epoch with the best NDCG of the others, 0 being none."""
        assert self.network is not None
        self.network.requires_grad_(True)
        optimizer = torch.optim.Adam(self.network.parameters(), self.config.network_lr)
        count, num_items = examples.scores.shape[1:]
        step = max(1, min(_MOST_HIDDEN // (num_items * self.config.network_width), -(-count // _CHOOSING)))
        parts = [slice(start, min(start + step, count)) for start in range(0, count, step)]
        choosing, learning = parts[::_CHOOSING], [part for at, part in enumerate(parts) if at % _CHOOSING]
        best, kept = -1.0, {}
        draw = np.random.default_rng(self._seed)
        for epoch in range(self.config.network_epochs + 1):
            with torch.no_grad():
                reached = sum(float(examples.gains(self._blended(*examples.of(part)), part).sum()) for part in choosing)
            if reached > best:
                best, kept = reached, {name: value.clone() for name, value in self.network.state_dict().items()}
            for at in draw.permutation(len(learning)) if epoch < self.config.network_epochs else ():
                optimizer.zero_grad()
                examples.loss(self._blended(*examples.of(learning[at])), learning[at]).backward()
                optimizer.step()
        self.network.load_state_dict(kept)
        self.network.requires_grad_(False)

    # -- scores ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, queries: Queries) -> tuple[Any, ...]:
        """What each met, and the states of the models."""
        self.require_built()
        if not self.models:
            raise ValueError("hybrid: the models are not there yet; call fit(data), or load one with deeprec.load(dir)")
        if queries.history is None:
            if queries.users is None:
                raise ValueError("hybrid: encode needs users or histories, got neither; pass Queries(users=...)")
            met = rows_of((self.history_offsets, self.history_items), queries.users)
        else:
            offsets, items, _ = as_sets(*queries.history)
            met = offsets, to_device(items, self.device)
        return (*met, *(model.encode(queries) for model in self.models))

    def user_rows(self, users: Tensor) -> tuple[Any, ...]:
        return (*self.encode(Queries(users)), users)

    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Any, ...]:
        return self.encode(Queries(history=(offsets, items)))

    def scorer(self, state: tuple[Any, ...]) -> BlockScorer:
        offsets, items = state[:2]
        scorers, columns = self._scorers(state), self._columns_asked(state)

        def scores(start: int, end: int) -> Tensor:
            return self._blended(self._standardised(scorers, offsets, items, start, end)[0], columns[start:end])

        return BlockScorer(len(offsets) - 1, self.require_built().num_items, items.device, scores)

    def _columns_asked(self, state: tuple[Any, ...]) -> Tensor:
        """Columns [b, P] of known users; the mean user's, zeros, of others."""
        if len(state) > 2 + len(self.models):
            return self.user_values[state[-1]]
        return self.user_values.new_zeros(len(state[0]) - 1, self.user_values.shape[1])

    def _scorers(self, state: tuple[Any, ...]) -> list[AnyScorer]:
        """Of each model."""
        return [model.scorer(own) for model, own in zip(self.models, state[2:], strict=False)]

    @torch.no_grad()
    def _standardised(
        self, scorers: list[AnyScorer], offsets: Tensor, items: Tensor, start: int, end: int
    ) -> tuple[Tensor, Tensor]:
        """What is blended [M, b, N] of users start to end, and what they met [b, N], bool."""
        offsets = offsets[start : end + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        num_items = self.require_built().num_items
        is_met = torch.zeros(end - start, num_items, dtype=torch.bool, device=items.device)
        is_met.index_put_((owners_of(offsets - first, items.device), items[first:last].long()), is_met.new_ones(()))
        parts = []
        for scorer in scorers:
            scores = score_rows(scorer, start, end).float().masked_fill(is_met, -torch.inf)
            parts.append(self._reciprocal_ranks(scores) if self.config.blend == "ranks" else _standard(scores, is_met))
        return torch.stack(parts), is_met

    def _reciprocal_ranks(self, scores: Tensor) -> Tensor:
        """1 / (k + rank), the rank being 1 + how many items have a larger score."""
        ascending = (-scores).sort(1).values
        larger = torch.searchsorted(ascending, -scores)
        return 1 / (self.config.rank_constant + 1 + larger.float())

    def _blended(self, scores: Tensor, columns: Tensor) -> Tensor:
        """[b, N] of [M, b, N] and [b, P]."""
        blended = (self.weights.view(-1, 1, 1) * scores).sum(0)
        if self.network is None:
            return blended
        first, last = self.network[0], self.network[2]
        assert isinstance(first, nn.Linear)
        of_scores, of_columns = first.weight.split([len(scores), columns.shape[1]], dim=1)
        hidden = torch.einsum("mbn,hm->bnh", scores, of_scores)
        hidden = torch.tanh(hidden + F.linear(columns, of_columns, first.bias).unsqueeze(1))
        added: Tensor = last(hidden)
        return blended + added.squeeze(2)


def _standard(scores: Tensor, is_met: Tensor) -> Tensor:
    """Scores less their mean and over their deviation, of each user over what is not met; 0 for what is."""
    counts = (~is_met).sum(1, keepdim=True).clamp(min=1)
    is_there = scores.isfinite()
    lowest = torch.where(is_there, scores, torch.inf).amin(1, keepdim=True)
    scores = torch.where(is_there, scores, torch.where(lowest.isfinite(), lowest, 0.0)).masked_fill(is_met, 0.0)
    mean = scores.sum(1, keepdim=True) / counts
    away = (scores - mean).masked_fill(is_met, 0.0)
    deviation = (away.square().sum(1, keepdim=True) / counts).sqrt()
    # What rounding leaves of equal scores is no preference.
    is_told_apart = deviation > 1e-6 * mean.abs()
    return torch.where(is_told_apart, away / deviation.clamp(min=torch.finfo(away.dtype).tiny), 0.0)


def _require_models(models: Iterable[Any]) -> None:
    """Raise TypeError or ValueError unless these are models of items, of the same users and items."""
    first: Any = None
    for model in models:
        if RECOMMENDS not in getattr(model, "capabilities", ()):
            raise TypeError(f"hybrid: models must recommend items, got {getattr(model, 'name', type(model).__name__)}")
        if model.user_ids is None or model.item_ids is None:
            raise ValueError(f"hybrid: models must be fitted, got {model.name} without id maps; call fit(data) on it")
        first = first or model
        for kind in ("user_ids", "item_ids"):
            if getattr(model, kind).sha256() != getattr(first, kind).sha256():
                raise ValueError(
                    f"hybrid: models must know the same {kind[:4]}s, got {first.name} and {model.name} of other ones; "
                    "fit both on the same data"
                )


def require_same_split(model: Any, task: Any) -> None:
    """Raise ValueError unless a model was trained on the training part of a task, and on that alone.

    Args:
        model: fitted in this process, or loaded, with its card as `fitted_card`.
        task: of the blend.
    """
    expected, card = task.checksums(model), getattr(model, "fitted_card", None)
    if card is not None:
        rule, there = protocol_from_dict(card.protocol), card.data
    elif model._fitted_on is not None:
        rule, there = model._fitted_on.protocol, model._fitted_on.checksums(model)
    else:
        raise ValueError(
            f"hybrid: {model.name} must say what it was trained on, got a model without card; pass the folder that fit "
            "wrote, by members=, or fit it here"
        )
    differences = task.protocol.differences(rule)
    for key, what in (("sha256", "data"), ("split_sha256", "split")):
        if there.get(key) != expected[key]:
            more = f" ({'; '.join(differences)})" if differences else ""
            raise ValueError(
                f"hybrid: models must be trained on the {what} of the blend, got {model.name} of another{more}; train "
                "it on this data under this protocol"
            )
    if isinstance(model, Hybrid) and model.config.blend != "ranks":
        raise ValueError(
            f"hybrid: models must not know the validation part, got a hybrid whose {model.config.blend} were learnt on "
            "it; blend its models instead"
        )
    if model.config.refit:
        raise ValueError(
            f"hybrid: models must not know the validation part, on which the blend is learnt, got {model.name} with "
            "refit=True; train it with refit=False"
        )
