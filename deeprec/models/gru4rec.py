"""GRU4Rec: a recurrent network over the events of a session, trained in session-parallel mini-batches.

Papers: Hidasi, Karatzoglou, Baltrunas, Tikk 2016, "Session-based Recommendations with Recurrent Neural Networks" (ICLR,
arXiv 1511.06939); Hidasi, Karatzoglou 2018, "Recurrent Neural Networks with Top-k Gains for Session-based
Recommendations" (CIKM, arXiv 1706.03847). Code: hidasib/GRU4Rec_PyTorch_Official, whose current form the defaults are.
As there: the reset gate acts after the recurrent product, tanh(W x + r (U h)), as in every fast GRU; the state that a
lane carries is the one after dropout; the loss is the sum over the lanes that are alive by the nominal batch size; the
gradient runs through one step; AdaGrad's sums start at 1e-6, which is its epsilon inside the root.
The model of 2016: loss=top1 (or bpr) negatives=in-batch input=one-hot.
A second way to train, batching=windows: each user's last `length` items at once, the gradient through all of them and
the softmax over all items. What papers on SASRec and BERT4Rec call GRU4Rec, and the better one for users' long
histories; with optimizer=adam lr=0.001 negatives=full.
Deviations: no final activation (tanh in 2016) for TOP1 and BPR; a one-hot input has no dropout of its own (in the
authors' code that of the embedding is a second one on the first layer's output).
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.batches.sequences import Histories, SequenceBatch, SequenceBatches
from deeprec.batches.sessions import SessionBatch, SessionBatches
from deeprec.contract import Batches, Schema
from deeprec.data import Interactions
from deeprec.device import to_device
from deeprec.kernels.sample_negatives import alias_table
from deeprec.kernels.session_step import session_columns, session_softmax
from deeprec.kernels.softmax_loss import softmax_loss
from deeprec.kernels.sums import add_rows, take
from deeprec.models._sequence_model import SequenceConfig, SequenceModel
from deeprec.models._session_config import GRU4RecConfig
from deeprec.models._session_losses import PairwiseOptions, pairwise_losses
from deeprec.models._session_step import (
    add_cell_gradients,
    add_repeated_grad,
    add_row_grad,
    cell_step,
    dropped,
)
from deeprec.nn.embedding import Embedding, catch_up

_PLACES_A_BLOCK = 1 << 14  # of histories that are read at a time


class GRU4Rec(SequenceModel):
    """score(session, i) = h . v_i + b_i, h = GRU(x_t, h_{t-1}) after the session's events.

    Buffers beside those of `SequenceModel`: `lane_states` [num_layers, B, H], so that a run that was interrupted within
    an epoch goes on with the states of its lanes.
    """

    name = "gru4rec"
    config_class: ClassVar[type[SequenceConfig]] = GRU4RecConfig
    config: GRU4RecConfig
    lane_states: Tensor
    _log_q: tuple[Tensor, Tensor] | None = None  # log_q times log count: of targets, of drawn items

    def _build_network(self, schema: Schema, generator: torch.Generator | None) -> None:
        config = self.config
        width, is_sparse = config.factors, config.negatives != "full"
        self.items = Embedding(schema.num_items, width, sparse=is_sparse, name="item")
        self.item_bias = Embedding(schema.num_items, 1, sparse=is_sparse, name="item")
        input_width = width
        if config.input != "constrained":
            input_width = 3 * width if config.input == "one-hot" else config.embedding_dim or width
            self.inputs = Embedding(schema.num_items, input_width, name="item")
        self.layers = nn.ModuleList(
            nn.GRU(width if layer else input_width, width, batch_first=True) for layer in range(config.num_layers)
        )
        self.register_buffer("lane_states", torch.zeros(config.num_layers, config.batch_size, width))
        with torch.no_grad():
            self._draw_weights(generator)
        if config.input == "one-hot":
            # The rows are what the gates get of the item: its matrix is the identity, and is not trained.
            first = _weights(self.layers[0])[0]
            first.requires_grad_(False).copy_(torch.eye(input_width))

    def _draw_weights(self, generator: torch.Generator | None) -> None:
        """Uniform in +-sqrt(6 / (rows + columns)), each gate a matrix of its own; biases 0."""

        def draw(weight: Tensor, rows: int, columns: int) -> None:
            limit = (6 / (rows + columns)) ** 0.5
            weight.uniform_(-limit, limit, generator=generator)

        draw(self.items.weight, *self.items.weight.shape)
        self.item_bias.weight.zero_()
        if self.config.input != "constrained":
            rows, columns = self.inputs.weight.shape
            draw(self.inputs.weight, rows, columns // 3 if self.config.input == "one-hot" else columns)
        for layer in self.layers:
            for name, parameter in layer.named_parameters():
                if name.startswith("weight"):
                    draw(parameter, parameter.shape[0] // 3, parameter.shape[1])
                else:
                    parameter.zero_()

    # -- training ------------------------------------------------------------------------------------------------------

    def batches(self, train: Interactions, seed: int) -> Batches:
        """Sessions in lanes, or windows; the whole history of each user is kept."""
        histories = Histories.of(train)
        self.history_offsets = to_device(torch.from_numpy(histories.offsets), self.device)
        self.history_items = to_device(torch.from_numpy(histories.items), self.device)
        return self.training_batches(train, seed)

    def training_batches(self, train: Interactions, seed: int) -> Batches:
        """As `batching` says."""
        config = self.config
        if config.batching == "windows":
            return SequenceBatches(
                train, batch_size=config.batch_size, length=config.length, seed=seed, device=self.device
            )
        counts = torch.from_numpy(train.item_counts())
        self._log_q = None
        if config.log_q:
            of_targets = to_device(config.log_q * counts.clamp(min=1).float().log(), self.device)
            self._log_q = of_targets, of_targets * (config.alpha if config.negatives == "mixed" else 1.0)
        return SessionBatches(
            train,
            num_lanes=config.batch_size,
            seed=seed,
            num_negatives=config.num_negatives if config.negatives == "mixed" else 0,
            popularity=alias_table(counts, config.alpha) if config.negatives == "mixed" else None,
            session_order=config.session_order,
            min_lanes=2 if config.negatives == "in-batch" else 1,
            device=self.device,
        )

    def loss(self, batch: SessionBatch | SequenceBatch) -> Tensor:
        """Of lanes, the sum of their losses by the nominal batch size; of windows, the mean over all places."""
        self.require_built()
        return self._loss_of_windows(batch) if isinstance(batch, SequenceBatch) else self._step(batch)[0]

    def backward(self, batch: SessionBatch | SequenceBatch) -> Tensor:
        """As every model; the lanes go on to the states after the step."""
        if isinstance(batch, SequenceBatch):
            return super().backward(batch)
        if self.config.negatives == "full":
            loss, states = self._step(batch)
            loss.backward()
        else:
            loss, states = self._backward_by_hand(batch)
        for kept, state in zip(self.lane_states, states, strict=True):
            if batch.lanes is None:
                kept[: len(batch)] = state
            else:
                kept.index_copy_(0, batch.lanes, state)
        return loss.detach()

    def _step(self, batch: SessionBatch) -> tuple[Tensor, list[Tensor]]:
        """The loss of one step of the lanes, and each layer's states [m, H] after it."""
        candidates, vectors = candidates_of(batch), self.items.weight
        if self.config.negatives != "full":
            vectors = self.items(candidates)
        inputs = self.items if self.config.input == "constrained" else self.inputs
        hidden, states = self._next_states(inputs(batch.items), batch)
        return self._loss_of(hidden, vectors, candidates, batch) / self.config.batch_size, states

    @torch.no_grad()
    def _backward_by_hand(self, batch: SessionBatch) -> tuple[Tensor, list[Tensor]]:
        """As `_step`, and the gradients of its loss: autograd's but for rounding, without the cost of a graph."""
        config, size, candidates = self.config, len(batch), candidates_of(batch)
        is_shared = config.input == "constrained"
        # Equal candidates share a column of the scores: the gradient of a table has each row once by itself.
        ids = torch.cat([batch.items, candidates]) if is_shared else candidates
        rows, places, counts = session_columns(ids, self.items.num_embeddings, name="item")
        own_places, places = (places[:size], places[size:]) if is_shared else (None, places)
        scored = None
        if own_places is not None:
            counts.index_add_(0, own_places, torch.full_like(own_places, -1))
            scored = counts.nonzero().squeeze(1)
        scored_rows = rows if scored is None else rows[scored]
        catch_up(self.items.weight, rows)  # as the layers do where autograd watches
        catch_up(self.item_bias.weight, scored_rows)
        if own_places is None:
            catch_up(self.inputs.weight, batch.items)
        vectors, bias = self.items(rows), self.item_bias(rows).squeeze(1)
        inputs = self.inputs(batch.items) if own_places is None else vectors.index_select(0, own_places)

        embed_share, hidden_share = (
            share if self.training else 0.0 for share in (config.dropout_embed, config.dropout_hidden)
        )
        hidden, mask = dropped(inputs, embed_share)
        cells, masks, states = [], [mask], []
        for layer, before in zip(self.layers, self._states_before(batch), strict=True):
            hidden, cell = cell_step(hidden, before, _weights(layer))
            hidden, mask = dropped(hidden, hidden_share)
            cells.append(cell)
            masks.append(mask)
            states.append(hidden)

        columns = _Columns(rows, places, counts)
        loss, slopes = self._slopes(hidden, vectors, bias, columns, candidates, batch)
        grad = (slopes @ vectors).div_(config.batch_size)
        for layer, cell in zip(reversed(self.layers), reversed(cells), strict=True):
            mask = masks.pop()
            grad = add_cell_gradients(cell, grad if mask is None else grad * mask, _weights(layer))
        grad = grad if masks[0] is None else grad * masks[0]
        grads = slopes.T @ (hidden / config.batch_size)
        if own_places is None:
            add_repeated_grad(self.inputs, batch.items, grad)
        else:
            add_rows(grads, own_places, grad)
        add_row_grad(self.items, rows, grads)
        bias_grads = slopes.sum(0).div_(config.batch_size)
        bias_grads = bias_grads if scored is None else bias_grads[scored]
        add_row_grad(self.item_bias, scored_rows, bias_grads.unsqueeze(1))
        return loss / config.batch_size, states

    def _slopes(
        self, hidden: Tensor, vectors: Tensor, bias: Tensor, columns: _Columns, candidates: Tensor, batch: SessionBatch
    ) -> tuple[Tensor, Tensor]:
        """The sum of the losses of states [m, H], and its gradient by the scores of the columns [m, U]."""
        targets = columns.places[: len(batch)]
        if self.config.loss != "cross-entropy":
            scores = torch.addmm(bias, hidden, vectors.T)
            with torch.enable_grad():
                scores.requires_grad_()
                loss = self._pairwise(take(scores, 1, columns.places), candidates, batch).sum()
                (slopes,) = torch.autograd.grad(loss, scores)
                return loss.detach(), slopes
        counts = columns.counts.to(bias.dtype)
        if self._log_q is None:
            log_counts = counts.log_()
            own = -log_counts[targets]
        else:
            of_targets, of_drawn = (each[columns.rows] for each in self._log_q)
            num_targets = torch.zeros_like(columns.counts).index_add_(0, targets, torch.ones_like(targets))
            num_targets = num_targets.to(bias.dtype)
            log_counts = torch.logaddexp(num_targets.log() - of_targets, (counts - num_targets).log() - of_drawn)
            own = -of_targets[targets] - log_counts[targets]
        scores = torch.addmm(bias + log_counts, hidden, vectors.T)
        return session_softmax(scores, targets, own, is_masked=self.config.mask_targets)

    def _states_before(self, batch: SessionBatch) -> Tensor:
        """What the lanes of a step know, [num_layers, m, H]."""
        before = self.lane_states[:, : len(batch)] if batch.lanes is None else self.lane_states[:, batch.lanes]
        return before if batch.is_first is None else before.masked_fill(batch.is_first.unsqueeze(1), 0.0)

    def _next_states(self, inputs: Tensor, batch: SessionBatch) -> tuple[Tensor, list[Tensor]]:
        """The last layer's states [m, H] after the inputs [m, D] of a step, and, for the lanes, each layer's without a
        gradient."""
        config = self.config
        states = []
        hidden = F.dropout(inputs, config.dropout_embed, self.training)
        for layer, state in zip(self.layers, self._states_before(batch), strict=True):
            hidden = torch.gru_cell(hidden, state, *_weights(layer))
            hidden = F.dropout(hidden, config.dropout_hidden, self.training)
            states.append(hidden.detach())
        return hidden, states

    def _loss_of(self, states: Tensor, vectors: Tensor, candidates: Tensor, batch: SessionBatch) -> Tensor:
        """The sum of the losses of states [m, H] whose targets are the first m candidates, or among all items."""
        config = self.config
        if config.negatives == "full":
            bias = self.item_bias.weight.squeeze(1)
            return softmax_loss(states, vectors, batch.targets, bias=bias, reduction="sum")
        bias = self.item_bias(candidates).squeeze(1)
        if config.loss == "cross-entropy":
            return softmax_loss(
                states,
                vectors,
                bias=bias,
                log_q=self._log_q_of(candidates, batch),
                item_ids=candidates if config.mask_targets else None,
                correct_positive=self._log_q is not None,
                reduction="sum",
            )
        return self._pairwise(torch.addmm(bias, states, vectors.T), candidates, batch).sum()

    def _log_q_of(self, candidates: Tensor, batch: SessionBatch) -> Tensor | None:
        """What the logits of candidates [c] are lowered by."""
        if self._log_q is None:
            return None
        return torch.cat([self._log_q[0][batch.targets], self._log_q[1][candidates[len(batch) :]]])

    def _pairwise(self, scores: Tensor, candidates: Tensor, batch: SessionBatch) -> Tensor:
        """Losses [m] of scores [m, c]."""
        config = self.config
        if config.mask_targets:
            is_negative = candidates != batch.targets.unsqueeze(1)
        else:
            is_negative = ~torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
        return pairwise_losses(scores, is_negative, PairwiseOptions(config.loss, config.bpreg, config.elu))

    def _loss_of_windows(self, batch: SequenceBatch) -> Tensor:
        """The mean softmax cross-entropy over all items and places."""
        # Windows start at the left, so that what is before them is no input.
        lengths = batch.mask.sum(1, keepdim=True)
        width = batch.mask.shape[1]
        places = torch.arange(width, device=lengths.device)
        sources = (places + width - lengths).clamp(max=width - 1)
        items, targets = (part.gather(1, sources) for part in (batch.items, batch.targets))
        mask = places < lengths
        states = self._states(items.clamp(min=0))[0]
        return softmax_loss(
            states.reshape(-1, self.config.factors),
            self.items.weight,
            targets.clamp(min=0).reshape(-1),
            bias=self.item_bias.weight.squeeze(1),
            weights=mask.reshape(-1).to(states.dtype),
        )

    def _states(self, items: Tensor) -> list[Tensor]:
        """States [b, l, H] after every place of items [b, l], each layer's, the last layer's first."""
        config = self.config
        hidden = (self.items if config.input == "constrained" else self.inputs)(items)
        hidden = F.dropout(hidden, config.dropout_embed, self.training)
        states = []
        for layer in self.layers:
            hidden = F.dropout(layer(hidden)[0], config.dropout_hidden, self.training)
            states.append(hidden)
        return [states[-1], *states[:-1]]

    # -- scores --------------------------------------------------------------------------------------------------------

    def output_items(self) -> tuple[Tensor, Tensor | None]:
        """The item vectors and biases."""
        return self.items.weight, self.item_bias.weight.squeeze(1)

    @torch.no_grad()
    def history_rows(self, offsets: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        """States [b, H] of each layer after whole histories, the last layer's first; zeros before a first item.

        Histories of like length are read together.
        """
        counts = offsets.diff()
        order = counts.argsort(stable=True)
        sizes = counts[order]
        states = self.items.weight.new_zeros(self.config.num_layers, len(counts), self.config.factors)
        start = int((sizes == 0).sum())
        while start < len(order):
            # Blocks of about as many places, each as wide as its longest history.
            widest = int(sizes[min(len(order), start + max(1, _PLACES_A_BLOCK // int(sizes[start]))) - 1])
            rows = order[start : start + max(1, _PLACES_A_BLOCK // widest)]
            start += len(rows)
            states.index_copy_(1, to_device(rows, items.device), self._read(offsets, items, rows))
        return tuple(states.unbind())

    def _read(self, offsets: Tensor, items: Tensor, rows: Tensor) -> Tensor:
        """States [num_layers, b, H] after the histories in these rows [b], none of which is empty."""
        ends, starts = (to_device(offsets[rows + shift], items.device).unsqueeze(1) for shift in (1, 0))
        width = int((offsets[rows + 1] - offsets[rows]).max())
        places = torch.minimum(starts + torch.arange(width, device=items.device), ends - 1)
        last = (ends - starts - 1).unsqueeze(2).expand(-1, 1, self.config.factors)
        return torch.stack([states.gather(1, last).squeeze(1) for states in self._states(items[places].long())])

    @torch.no_grad()
    def advance(self, state: tuple[Tensor, ...], items: Tensor) -> tuple[Tensor, ...]:
        """The state after one more item each [b], int64: one step of the network, whatever came before."""
        hidden = (self.items if self.config.input == "constrained" else self.inputs)(items)
        after = []
        for layer, before in zip(self.layers, (*state[1:], state[0]), strict=True):
            hidden = torch.gru_cell(hidden, before, *_weights(layer))
            after.append(hidden)
        return (after[-1], *after[:-1])


class _Columns(NamedTuple):
    """The distinct items of a step.

    Attributes:
        rows: [U], int64, ascending.
        places: [c], int64, the place of each candidate among them, targets first.
        counts: [U], int64, how many candidates are the row; 0 of an input alone.
    """

    rows: Tensor
    places: Tensor
    counts: Tensor


def candidates_of(batch: SessionBatch) -> Tensor:
    """The targets of a step, then its drawn items."""
    return batch.targets if batch.negatives is None else torch.cat([batch.targets, batch.negatives])


def _weights(layer: nn.Module) -> list[Tensor]:
    """Matrices and biases of a layer, in the order that `torch.gru_cell` takes them."""
    assert isinstance(layer, nn.GRU)
    return list(layer.all_weights[0])
