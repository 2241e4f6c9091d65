"""What models that read an ordered history share: windows of items in, a vector out, and its products with all items.

A user is nothing but the last items that they met, in order. Those of the training rows are kept with the weights, so
that known users are served without their data; any other history is read by the same network, so a new event changes
the next recommendation without training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from deeprec.batches.sequences import Histories, SequenceBatches
from deeprec.config import TrainConfig, at_least
from deeprec.contract import RETRIEVES, SIMILAR_ITEMS, Batches, Schema
from deeprec.data import Interactions
from deeprec.device import to_device
from deeprec.kernels.sums import take
from deeprec.models.base import Recommender
from deeprec.nn.scoring import DotScorer, Lists, rows_of

_PLACES_A_BLOCK = 1 << 14  # of windows that are read at a time: their states stay in the cache


@dataclass(frozen=True)
class SequenceConfig(TrainConfig):
    """Attributes:
    factors: D, width of the vectors, >= 1.
    length: L, the last items of a history that are read, >= 1.
    batch_size: windows of histories a step, >= 1.
    """

    unused: ClassVar[tuple[str, ...]] = ("l2", "reduction", "precision")

    factors: int = 64
    length: int = 50
    batch_size: int = 128

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("factors", "length", "batch_size"):
            at_least(self, name, 1)
        self._check_shared()


class SequenceModel(Recommender):
    """score(history, i) = encode(history) . v_i + b_i.

    A subclass says `_build_network`, `encode_windows` or `encode_last`, `output_items` and `loss`, and where it trains
    on something else than windows, `training_batches`.

    Buffers: `history_offsets` [num_users + 1] and `history_items`, the last L training items of each user, in order.
    """

    config_class: ClassVar[type[TrainConfig]] = SequenceConfig
    capabilities: ClassVar[frozenset[str]] = Recommender.capabilities | {SIMILAR_ITEMS, RETRIEVES}
    reads_history: ClassVar[bool] = True
    config: SequenceConfig
    history_offsets: Tensor
    history_items: Tensor

    # -- what a subclass says ------------------------------------------------------------------------------------------

    def _build_network(self, schema: Any, generator: torch.Generator | None) -> None:
        raise NotImplementedError

    def encode_windows(self, items: Tensor, mask: Tensor) -> Tensor:
        """States [b, l, D]: what is expected after each place of the windows.

        Args:
            items: [b, l], int64, l <= L, each window at the right end of its row; -1 before it.
            mask: [b, l], bool: whether there is an item.
        """
        raise NotImplementedError

    def encode_last(self, items: Tensor, mask: Tensor) -> Tensor:
        """Vectors [b, D]: what is expected after the windows; those of empty windows are not read."""
        return self.encode_windows(items, mask)[:, -1]

    def output_items(self) -> tuple[Tensor, Tensor | None]:
        """v, [num_items, D], and b, [num_items], or None for no biases."""
        raise NotImplementedError

    def training_batches(self, train: Interactions, seed: int) -> Batches:
        """By default one window of each user an epoch, without negatives."""
        config = self.config
        return SequenceBatches(train, batch_size=config.batch_size, length=config.length, seed=seed, device=self.device)

    # -- known users ------------------------------------------------------------------------------------------------

    def _build(self, schema: Schema, generator: torch.Generator | None) -> None:
        self.register_buffer("history_offsets", torch.zeros(schema.num_users + 1, dtype=torch.int64))
        self.register_buffer("history_items", torch.zeros(0, dtype=torch.int32))
        self._build_network(schema, generator)
        self.train(self.training)  # a model that is asked, not trained, stays so: dropout is off

    def batches(self, train: Interactions, seed: int) -> Batches:
        """What is trained on; the last items of each user are kept."""
        offsets, items = last_items(Histories.of(train), self.config.length)
        self.history_offsets = to_device(torch.from_numpy(offsets), self.device)
        self.history_items = to_device(torch.from_numpy(items), self.device)
        return self.training_batches(train, seed)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's; there are as many kept items as in the file.

        Raises:
            ValueError: kept items that are none of the catalogue.
        """
        if {"history_items", "history_offsets"} <= set(state_dict):
            offsets, items = (state_dict[f"history_{name}"] for name in ("offsets", "items"))
            if (
                offsets.is_cpu and items.is_cpu
            ):  # as from a file; a model's own, elsewhere, need no look that would wait
                self._check_histories(offsets, items)
            self.history_items = torch.empty_like(items, device=self.device)
        return super().load_state_dict(state_dict, strict, assign)

    def _check_histories(self, offsets: Tensor, items: Tensor) -> None:
        """Raise ValueError unless these are lists of items of the catalogue, one after the other."""
        bounds, most = torch.cat([offsets, offsets.new_tensor([len(items)])]), self.require_built().num_items - 1
        is_in_order = int(offsets[0]) >= 0 and bool((bounds.diff() >= 0).all())
        if not is_in_order or (len(items) and not 0 <= int(items.min()) <= int(items.max()) <= most):
            raise ValueError(
                f"{self.name}: history_offsets must ascend within [0, {len(items)}] and history_items lie in "
                f"[0, {most}]; the file is damaged, train anew"
            )

    @torch.no_grad()
    def begin_from(self, weights: Mapping[str, Tensor], data: Any) -> None:
        """As every model; until the first step known users have the histories that they had, and new ones none."""
        moved, names = dict(weights), ("history_offsets", "history_items")
        if set(names) <= set(moved):
            offsets, items = (to_device(moved.pop(name), self.device) for name in names)
            added = len(self.history_offsets) - len(offsets)
            self.history_offsets = torch.cat([offsets, offsets[-1:].expand(added)])
            self.history_items = items
            moved |= {name: getattr(self, name) for name in names}
        super().begin_from(moved, data)

    # -- scores -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def user_rows(self, users: Tensor) -> tuple[Tensor, ...]:
        return self.history_rows(*rows_of((self.history_offsets, self.history_items), users))

    @torch.no_grad()
    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        """Vectors [b, D] of histories; of one without items zeros, so that biases alone rank."""
        return (self._read_last(offsets, items, self.encode_last),)

    def _read_last(self, offsets: Tensor, items: Tensor, encode: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """What `encode` makes of the windows of histories, [b, D]; zeros of one without items.

        Histories of like length are read together: padding costs next to nothing.
        """
        length = self.config.length
        counts = offsets.diff().clamp(max=length)
        order = counts.argsort(stable=True)
        sizes, start, parts = counts[order], 0, []
        while start < len(order):
            # Blocks of about as many places, each as wide as its longest window.
            widest = int(sizes[min(len(order), start + _PLACES_A_BLOCK // max(1, int(sizes[start]))) - 1])
            rows = order[start : start + max(1, _PLACES_A_BLOCK // max(1, widest))]
            width = int(counts[rows].max())
            if width:
                parts.append(encode(*windows_of((offsets, items), rows, width)))
            else:
                parts.append(self.output_items()[0].new_zeros(len(rows), self.config.factors))
            if width and not int(counts[rows].min()):
                is_empty = to_device(counts[rows] == 0, items.device)
                parts[-1] = parts[-1].masked_fill(is_empty.unsqueeze(1), 0.0)
            start += len(rows)
        if not parts:
            return self.output_items()[0].new_zeros(0, self.config.factors)
        return take(torch.cat(parts), 0, to_device(order.argsort(), items.device))

    def scorer(self, state: tuple[Tensor, ...]) -> DotScorer:
        vectors, bias = self.output_items()
        return DotScorer(state[0], vectors.detach(), None if bias is None else bias.detach())

    @torch.no_grad()
    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of pairs of internal ids of known users; shapes broadcast."""
        self.require_built()
        users, items = torch.broadcast_tensors(users.long(), items.long())
        distinct, places = users.unique(return_inverse=True)
        vectors, bias = self.output_items()
        scores = (self.user_rows(distinct)[0][places] * vectors[items]).sum(-1)
        return scores if bias is None else scores + bias[items]

    def item_vectors(self) -> Tensor:
        self.require_built()
        return self.output_items()[0].detach()


def last_items(histories: Histories, length: int) -> Histories:
    """The last `length` items of each history, in order."""
    offsets, items = histories
    counts = np.minimum(np.diff(offsets), length)
    kept = np.zeros_like(offsets)
    np.cumsum(counts, out=kept[1:])
    return Histories(kept, items[np.arange(kept[-1]) + np.repeat(offsets[1:] - kept[1:], counts)])


def windows_of(lists: Lists, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The last `width` items of some lists, each at the right end of its row.

    Args:
        lists: offsets on the CPU; items anywhere.
        rows: [b], int64, on the CPU.
        width: >= 1.
    Returns:
        items [b, width], int64, -1 where there is none, and the mask of those that there are, where the items are.
    """
    offsets, items = lists
    ends = to_device(offsets[rows + 1], items.device).unsqueeze(1)
    first = to_device(offsets[rows], items.device).unsqueeze(1)
    places = ends + torch.arange(-width, 0, device=items.device)
    mask = places >= first
    if not len(items):
        return torch.full_like(places, -1), mask
    return items[places.clamp(min=0)].long().masked_fill(~mask, -1), mask
