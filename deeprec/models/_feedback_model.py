"""What models share that learn from logged feedback: a state of what a user liked, and of what they did not.

Ratings are rewards: 1 for a click and 0 for what was shown without one, minutes, stars, or money. Data without ratings
is taken as rewards of 1. An event with a reward above `liked_above` is liked; the state is that of a GRU after the
liked events (and, with `two_sided`, of another GRU after the others). A reward above 0 is not yet a liking where all
rewards are, such as stars.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from deeprec.batches.feedback import REWARDS, Feedback, FeedbackBatch, FeedbackBatches
from deeprec.batches.sequences import Histories
from deeprec.config import TrainConfig, one_of
from deeprec.contract import Batches, Schema
from deeprec.data import Interactions
from deeprec.device import to_device
from deeprec.kernels.sums import take
from deeprec.models._sequence_model import SequenceConfig, SequenceModel, last_items
from deeprec.nn.embedding import Embedding
from deeprec.nn.scoring import rows_of

_KEPT = {"history": ("history_offsets", "history_items"), "skipped": ("skipped_offsets", "skipped_items")}


@dataclass(frozen=True)
class FeedbackConfig(SequenceConfig):
    """Attributes:
    length: L, the last events of a user that are trained on, and the last liked items that are read, >= 1.
    reward: "rating", the ratings of the data, 1 where it has none; or "one", whatever they are.
    liked_above: an event with a larger reward is liked, and read by the state.
    two_sided: whether the other events are read too, by a network of their own.
    discount: of later rewards, in [0, 1]; 0: each event earns its own reward alone.
    init_std: standard deviation of the initial item vectors, > 0.
    """

    reward: str = "rating"
    liked_above: float = 0.0
    two_sided: bool = False
    discount: float = 0.0
    init_std: float = 0.05
    epochs: int = 30
    patience: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        one_of(self, "reward", REWARDS)
        if not 0 <= self.discount <= 1:
            raise ValueError(f"{owner}: discount must lie in [0, 1], got {self.discount}")
        if not self.init_std > 0:
            raise ValueError(f"{owner}: init_std must be > 0, got {self.init_std}")


class States(NamedTuple):
    """What is known before and after each event of a batch's windows.

    Attributes:
        before, after: [b * l, D].
        items: [b * l], int64, the items of the events, 0 where there is none.
        mask: [b * l], 1.0 where there is an event, 0.0 elsewhere.
    """

    before: Tensor
    after: Tensor
    items: Tensor
    mask: Tensor


class FeedbackModel(SequenceModel):
    """score(history, i) = head(state) . v_i + b_i, the state that of GRUs over what was liked and what was not.

    A subclass says `_build_heads`, `output_items`, `loss` and, where the states are not scored as they are, `head`.

    Buffers beside those of `SequenceModel`, whose items are the liked ones: `skipped_offsets` [num_users + 1] and
    `skipped_items`, the last L others of each user, with `two_sided`.
    """

    config_class: ClassVar[type[TrainConfig]] = FeedbackConfig
    config: FeedbackConfig
    skipped_offsets: Tensor
    skipped_items: Tensor

    # -- what a subclass says ------------------------------------------------------------------------------------------

    def _build_heads(self, schema: Schema, generator: torch.Generator | None) -> None:
        raise NotImplementedError

    def head(self, states: Tensor) -> Tensor:
        """The states as they are scored; that of zeros is zeros."""
        return states

    # -- the network ---------------------------------------------------------------------------------------------------

    def _build_network(self, schema: Schema, generator: torch.Generator | None) -> None:
        width = self.config.factors
        if self.config.two_sided:
            self.register_buffer("skipped_offsets", torch.zeros(schema.num_users + 1, dtype=torch.int64))
            self.register_buffer("skipped_items", torch.zeros(0, dtype=torch.int32))
        self.reader = Reader(schema.num_items, width, two_sided=self.config.two_sided)
        self._build_heads(schema, generator)
        draw_weights(self, self.config.init_std, generator)

    def states(self, batch: FeedbackBatch, reader: Reader | None = None) -> States:
        """States before and after each event of the windows.

        Args:
            reader: another network than the model's own.
        """
        reader = self.reader if reader is None else reader
        is_liked = batch.mask & (batch.rewards > self.config.liked_above)
        before, after = reader.states(batch.items, is_liked, batch.mask & ~is_liked)
        mask = batch.mask.flatten().to(before.dtype)
        return States(before, after, batch.items.clamp(min=0).flatten(), mask)

    # -- known users ---------------------------------------------------------------------------------------------------

    def batches(self, train: Interactions, seed: int) -> Batches:
        """Windows of events; the last liked items of each user are kept, and with `two_sided` the last others."""
        config = self.config
        feedback = Feedback.of(train, config.reward)
        is_liked = feedback.rewards > config.liked_above
        if not is_liked.any():
            raise ValueError(
                f"{self.name}: liked_above must leave a liked event, got {config.liked_above:g} for rewards up to "
                f"{feedback.rewards.max(initial=0):g}; lower it"
            )
        self._keep("history", feedback.those(is_liked))
        if config.two_sided:
            self._keep("skipped", feedback.those(~is_liked))
        return self.training_batches(train, seed)

    def training_batches(self, train: Interactions, seed: int) -> Batches:
        config = self.config
        return FeedbackBatches(
            train,
            batch_size=config.batch_size,
            length=config.length,
            seed=seed,
            discount=config.discount,
            reward=config.reward,
            device=self.device,
        )

    def _keep(self, kind: str, histories: Histories) -> None:
        kept = last_items(histories, self.config.length)
        for name, values in zip(_KEPT[kind], kept, strict=True):
            setattr(self, name, to_device(torch.from_numpy(values), self.device))

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As of `SequenceModel`, for both kinds of items."""
        if set(_KEPT["skipped"]) <= set(state_dict):
            offsets, items = (state_dict[name] for name in _KEPT["skipped"])
            if offsets.is_cpu and items.is_cpu:
                self._check_histories(offsets, items)
            self.skipped_items = torch.empty_like(items, device=self.device)
        return super().load_state_dict(state_dict, strict, assign)

    @torch.no_grad()
    def begin_from(self, weights: Mapping[str, Tensor], data: Any) -> None:
        moved = dict(weights)
        if set(_KEPT["skipped"]) <= set(moved):
            offsets, items = (to_device(moved.pop(name), self.device) for name in _KEPT["skipped"])
            added = len(self.skipped_offsets) - len(offsets)
            self.skipped_offsets = torch.cat([offsets, offsets[-1:].expand(added)])
            self.skipped_items = items
            moved |= {name: getattr(self, name) for name in _KEPT["skipped"]}
        super().begin_from(moved, data)

    # -- scores --------------------------------------------------------------------------------------------------------

    def encode_last(self, items: Tensor, mask: Tensor) -> Tensor:
        """Of what was liked."""
        return self.head(self.reader.last(items, mask))

    @torch.no_grad()
    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        (rows,) = super().user_rows(users)
        if not self.config.two_sided:
            return (rows,)
        skipped = rows_of((self.skipped_offsets, self.skipped_items), users)
        return (rows + self._read_last(*skipped, self._encode_skipped),)

    def _encode_skipped(self, items: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.reader.last_skipped(items, mask))

    @torch.no_grad()
    def feedback_rows(self, items: Tensor, rewards: Tensor) -> tuple[Tensor, ...]:
        """The state of people without an id after events [b, t] in order, for `scorer`.

        Args:
            items: [b, t], int64, internal ids; -1 where there is no event.
            rewards: [b, t], floating point.
        """
        self.require_built()
        there = items >= 0
        is_liked = there & (rewards > self.config.liked_above)
        after = self.reader.states(items, is_liked, there & ~is_liked)[1]
        if not items.shape[1]:
            return (self.output_items()[0].new_zeros(len(items), self.config.factors),)
        return (self.head(after.view(len(items), items.shape[1], -1)[:, -1]),)


class Reader(nn.Module):
    """States of histories: h+ of the liked items, and with `two_sided` + P h- of the others, each by a GRU.

    Args:
        num_items: N. width: D, of vectors and states.
        two_sided: whether the others are read.
    """

    def __init__(self, num_items: int, width: int, *, two_sided: bool) -> None:
        super().__init__()
        self.items = Embedding(num_items, width, sparse=False, name="item")
        self.liked = nn.GRU(width, width, batch_first=True)
        self.skipped = nn.GRU(width, width, batch_first=True) if two_sided else None
        self.mix = nn.Linear(width, width, bias=False) if two_sided else None  # P

    def states(self, items: Tensor, is_liked: Tensor, is_skipped: Tensor) -> tuple[Tensor, Tensor]:
        """States [b * l, D] before and after each place of items [b, l], and of those that are liked or skipped."""
        before, after = _states_of(self.liked, self.items, items, is_liked)
        if self.skipped is None or self.mix is None:
            return before, after
        others = _states_of(self.skipped, self.items, items, is_skipped)
        return before + self.mix(others[0]), after + self.mix(others[1])

    def last(self, items: Tensor, mask: Tensor) -> Tensor:
        """h+, [b, D], after liked items [b, l]."""
        return _last_of(self.liked, self.items, items, mask)

    def last_skipped(self, items: Tensor, mask: Tensor) -> Tensor:
        """P h-, [b, D], after other items [b, l]."""
        assert self.skipped is not None
        assert self.mix is not None
        mixed: Tensor = self.mix(_last_of(self.skipped, self.items, items, mask))
        return mixed


@torch.no_grad()
def draw_weights(network: nn.Module, std: float, generator: torch.Generator | None) -> None:
    """Tables by their deviation, matrices such that what comes out is as large as what goes in; biases 0."""
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            columns = parameter.shape[-1]
            if parameter.dim() < 2 or columns == 1:
                parameter.zero_()
            else:
                parameter.normal_(0.0, std if isinstance(module, Embedding) else columns**-0.5, generator=generator)


def _last_of(layer: nn.GRU, table: Embedding, items: Tensor, mask: Tensor) -> Tensor:
    after = _states_of(layer, table, items, mask)[1]
    return after.view(*items.shape, -1)[:, -1]


def _states_of(layer: nn.GRU, table: Embedding, items: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """States [b * l, D] of a GRU before and after each place of items [b, l], which reads those of the mask alone."""
    rows, width = items.shape
    # Those that are read move to the left, in order; the state after n of them stands at n.
    order = (~mask).long().argsort(dim=1, stable=True)
    inputs = table(items.gather(1, order).clamp(min=0))
    read = layer(inputs)[0] if width else inputs
    states = torch.cat([read.new_zeros(rows, 1, read.shape[2]), read], 1).flatten(0, 1)
    after = mask.long().cumsum(1)
    firsts = torch.arange(rows, device=items.device).unsqueeze(1) * (width + 1)
    before, after = (take(states, 0, (firsts + count).flatten()) for count in (after - mask.long(), after))
    return before, after
