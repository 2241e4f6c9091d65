"""`fit_more`: a trained model goes on training on rows that came later, with rows of their own for what is new.

Users, items and values that the model knows keep their places; new ones follow them. The model is built anew for the
larger sizes and takes over its weights, so that before the first step every known score is what it was. From there on
it is a run like any other (`deeprec.train.fit`), whose weights as they were are a candidate of their own, epoch 0.
The optimizer begins anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from deeprec.config import make_config
from deeprec.contract import RATES, Seen, merged, pair_keys
from deeprec.data import Folksonomy, IdMap, Interactions
from deeprec.data.clicks.log import ClickLog, has_grown_from
from deeprec.data.sets.click_datasets import load_clicks
from deeprec.device import Device
from deeprec.evaluate.click_protocol import ClickProtocol
from deeprec.evaluate.protocols import Protocol
from deeprec.evaluate.tasks import (
    ClickTask,
    InteractionTask,
    as_click_protocol,
    as_interactions,
    as_protocol,
    joined_rows,
)
from deeprec.train.callbacks import Progress
from deeprec.train.fitting import FitResult, fit
from deeprec.train.identity import START


def fit_more(
    model: Any,
    data: Any,
    *,
    epochs: int | None = None,
    lr: float | None = None,
    protocol: Any = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    select: str | None = None,
    report_best_on_test: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    callbacks: Any = (),
    device: Device = "auto",
    schema: Any = None,
) -> FitResult:
    """Go on training `model` on rows that came later, and measure it on those of them that are held out.

    Only rows that the model never met are held out (unless there are none, or the data comes with a split of its own);
    items that a user met before are neither drawn as negatives nor ranked against the held-out ones. Models that are
    fitted directly, and CDAE, learn from all that users met, then and now. AutoRec and CFN need the ratings of that:
    pass them the old and the new rows together.

    Args:
        model: fitted or loaded.
        data: the later rows, as of `fit`, or what `later_task` made of them; of clicks a log that was encoded before
            must have the encoder of the model, grown: `load_clicks(..., encoder=model.encoder)`.
        epochs, lr: instead of those of the model's options; all others stay.
        protocol: as of `fit`. Of clicks, the share of negatives that training keeps stays by default.
        seed: of new rows of weights, order, dropout and negatives.
        out, resume, select, report_best_on_test, on_progress, callbacks, device: as of `fit`. To resume, pass the model
            as it was before the run: the one that was saved then.
        schema: of clicks; it must be the model's.
    Returns:
        what `fit` returns; epoch 0 on the card says that the model is best as it was.
    Raises:
        ValueError: a model that was never fitted, other columns, rows without what the model needs, or as of `fit`. The
            model is then as it was. TypeError: ids of another type.
    """
    given = {name: value for name, value in (("epochs", epochs), ("lr", lr)) if value is not None}
    config = make_config(type(model.config), model.config, given)
    task = later_task(model, data, protocol, schema)
    with _as_before_if_it_fails(model):
        model.hold(config)
        return fit(
            model,
            task,
            seed=seed,
            out=out,
            resume=resume,
            select=select,
            report_best_on_test=report_best_on_test,
            on_progress=on_progress,
            callbacks=callbacks,
            device=device,
            baselines=False,  # they would know nothing of the earlier rows
        )


@dataclass(frozen=True)
class Start:
    """What a model goes on from.

    Attributes:
        weights: its state dict.
        sha256: of these.
    """

    weights: Mapping[str, Tensor]
    sha256: str

    @classmethod
    def of(cls, model: Any) -> Start:
        """Of a model as it is; that is built anew, so nothing writes into these weights."""
        weights, digest = model.state_dict(), hashlib.sha256()
        for name, tensor in sorted(weights.items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return cls(weights, digest.hexdigest())


class LaterInteractions(InteractionTask):
    """Later rows for a model that met others before.

    Attributes:
        met: the items that each user met before.
        start: what the model goes on from; None where it is only measured.
        on_whole_rows: whether the model trains on the pairs that were met before too.
    """

    def __init__(
        self,
        data: Interactions,
        protocol: Protocol,
        met: Seen,
        start: Start | None = None,
        *,
        on_whole_rows: bool = False,
    ) -> None:
        self.data, self.name = data, data.name
        self.protocol = protocol.resolve(data)
        self.met, self.start, self.on_whole_rows = met, start, on_whole_rows
        keys, known = data.pair_keys(), pair_keys(met, data.num_items)
        # What may be held out: pairs, or items, that were never met.
        is_known = np.isin(keys, known) if self.protocol.holdout != "items" else np.isin(data.items, met.items)
        if self.protocol.holdout == "items" and is_known.all():
            raise ValueError(
                f"fit_more: items held out whole must be new to the model, got none in {data.name!r}; take another "
                "protocol, such as full"
            )
        users, items = np.divmod(np.setdiff1d(known, keys), max(data.num_items, 1))
        before = data.of_pairs(users.astype(np.int32), items.astype(np.int32))
        whole = joined_rows(before, data) if len(before) else data
        holds_out_known = self.protocol.holdout == "official" or is_known.all() or not is_known.any()
        parts = self.protocol.split(data if holds_out_known else data.take(~is_known), whole)
        self._rows = parts.train if holds_out_known else joined_rows(data.take(is_known), parts.train)
        # All that was met is masked where held-out items are ranked, and counts as popularity.
        self.num_before = len(before)
        self.split = replace(parts, train=joined_rows(before, self._rows) if len(before) else self._rows)

    def under(self, protocol: Protocol) -> LaterInteractions:
        """The same rows, cut and measured by another protocol."""
        return LaterInteractions(self.data, protocol, self.met, self.start, on_whole_rows=self.on_whole_rows)

    def build(self, model: Any, generator: torch.Generator) -> bool:
        """Make the parameters for all users and items, and take over those that are known."""
        super().build(model, generator)
        model.earlier = Seen(*self.split.train.csr())
        return _take_over(model, self.start, self.data)

    def train(self, seed: int, *, joined: bool = False) -> Interactions:
        """The training part of the later rows, or that of all; `joined`: with the validation part."""
        rows = self.split.train if self.on_whole_rows else self._rows
        return joined_rows(rows, self.split.validation) if joined else rows

    def checksums(self, model: Any) -> dict[str, str]:
        """With the weights at the start."""
        return {**super().checksums(model), **_checksum(self.start)}

    def adopt(self, model: Any) -> None:
        """Give the model its id maps and every item that each user has met, then and now."""
        super().adopt(model)
        model.seen = merged(self.met, model.seen, self.data.num_users, self.data.num_items)
        model.earlier = None


class LaterClicks(ClickTask):
    """Later rows of a log for a model that learned from others before, encoded by its own encoder, grown.

    Attributes:
        start: what the model goes on from.
    """

    def __init__(self, log: ClickLog, protocol: ClickProtocol, start: Start) -> None:
        super().__init__(log, protocol)
        self.start = start

    def build(self, model: Any, generator: torch.Generator) -> bool:
        """Make the parameters for all values, and take over those that are known."""
        super().build(model, generator)
        return _take_over(model, self.start, self.log)

    def checksums(self, model: Any) -> dict[str, str]:
        """With the weights at the start."""
        return {**super().checksums(model), **_checksum(self.start)}

    def described(self, model: Any, seed: int) -> dict[str, Any]:
        """With the weights at the start."""
        return {**super().described(model, seed), **_checksum(self.start)}


def _checksum(start: Start | None) -> dict[str, str]:
    return {} if start is None else {START: start.sha256}


def _take_over(model: Any, start: Start | None, data: Any) -> bool:
    """Whether the model has its earlier weights now; one that is fitted directly needs none."""
    if start is None or not model.trains_by_gradient:
        return False
    model.begin_from(start.weights, data)
    return True


def later_task(model: Any, data: Any, protocol: Any = None, schema: Any = None) -> Any:
    """What `fit_more` goes on with, `LaterInteractions` or `LaterClicks`; its arguments and errors."""
    model.require_built()
    if isinstance(data, LaterInteractions | LaterClicks) and protocol is None and schema is None:
        return data
    return (_clicks if model.reads == "log" else _interactions)(model, data, protocol, schema)


def _interactions(model: Any, data: Any, protocol: Any, schema: Any) -> LaterInteractions:
    """The task of going on with interactions."""
    if schema is not None:
        raise ValueError(f"fit_more: {model.name} does not use schema, it learns from interactions; leave it out")
    if model.user_ids is None or model.item_ids is None:
        raise ValueError(f"fit_more: {model.name} has no id maps; call fit(data), or load one with deeprec.load(dir)")
    rule = as_protocol("full" if protocol is None else protocol)
    later = with_known_ids(as_interactions(data), model.user_ids, model.item_ids)
    met = model.seen
    if met is None:
        if model.trains_on_whole_rows:
            raise ValueError(
                f"fit_more: {model.name} must know what users met before (`seen`), got None; fit it anew on all rows"
            )
        met = Seen(np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int32))
    task = LaterInteractions(later, rule, met, Start.of(model), on_whole_rows=model.trains_on_whole_rows)
    if task.num_before and (needs := _needs_beside_pairs(model, later)):
        raise ValueError(
            f"fit_more: {model.name} needs {needs}, got {len(later):,} rows of {later.name!r} without "
            f"{task.num_before:,} that were met before; pass old and new rows together"
        )
    return task


def _needs_beside_pairs(model: Any, data: Interactions) -> str:
    """What a model must know of earlier rows that `seen` does not say; "" where that is nothing."""
    if model.reads_tags and isinstance(data, Folksonomy):
        return "all tags of its users and items"
    if model.trains_on_whole_rows and RATES in model.capabilities:
        return "all ratings of its users and items"
    return "all that users did, in order" if model.reads_history else ""


def with_known_ids(data: Interactions, user_ids: IdMap, item_ids: IdMap) -> Interactions:
    """The rows by the indices of maps that grow by what is new in the data.

    Raises:
        TypeError: ids of another type than the maps'.
    """
    try:
        users, items = user_ids.grown(data.user_ids.values), item_ids.grown(data.item_ids.values)
    except TypeError as error:
        raise TypeError(f"fit_more: the data must have the ids of the model ({error})") from None
    user_of, item_of = users.encode(data.user_ids.values), items.encode(data.item_ids.values)
    official = data.official
    if official is not None and official.test_negatives is not None:
        official = replace(official, test_negatives=item_of[official.test_negatives])
    return replace(
        data,
        users=user_of[data.users],
        items=item_of[data.items],
        user_ids=users,
        item_ids=items,
        official=official,
        user_features=_features(data.user_features, user_of, len(users)),
        item_features=_features(data.item_features, item_of, len(items)),
    )


def _features(frame: pl.DataFrame | None, row_of: np.ndarray, rows: int) -> pl.DataFrame | None:
    """A table with its row i in place row_of[i], nulls in the places of none."""
    if frame is None:
        return None
    at = np.full(rows, -1, dtype=np.int64)
    at[row_of] = np.arange(len(row_of))
    places = pl.Series(at)
    return frame.select(pl.all().gather(places.set(places < 0, None)))


def _clicks(model: Any, data: Any, protocol: Any, schema: Any) -> LaterClicks:
    """The task of going on with a log."""
    if model.encoder is None:
        raise ValueError(f"fit_more: {model.name} has no encoder; call fit(data), or load one with deeprec.load(dir)")
    rule = ClickProtocol(negative_rate=model.negative_rate) if protocol is None else as_click_protocol(protocol)
    if rule.negative_rate != model.negative_rate:
        raise ValueError(
            f"fit_more: negative_rate must stay {model.negative_rate:g}, for which the weights of {model.name} are "
            f"corrected, got {rule.negative_rate:g}; take ClickProtocol(negative_rate={model.negative_rate:g})"
        )
    if schema is not None and schema != model.encoder.schema:
        raise ValueError(
            f"fit_more: schema must be that of {model.name}, model.encoder.schema, got another; leave it out, or train "
            "a model anew"
        )
    log = data
    if not isinstance(data, ClickLog):
        shares = (rule.validation_share, rule.test_share)
        log = load_clicks(data, holdout=rule.holdout, shares=shares, seed=rule.seed, encoder=model.encoder)
    _require_grown(log, model)
    return LaterClicks(log, rule, Start.of(model))


def _require_grown(log: ClickLog, model: Any) -> None:
    """Raise ValueError unless the ids of a log mean what they mean to the model."""
    if log.schema != model.encoder.schema:
        raise ValueError(
            f"fit_more: {log.name} must have the schema that {model.name} was trained with, got another; convert the "
            "rows with load_clicks(..., encoder=model.encoder), or train a model anew"
        )
    if not has_grown_from(log.encoder, model.encoder):
        raise ValueError(
            f"fit_more: {log.name} must be encoded by the encoder of {model.name}, grown, got one that was fitted "
            "anew; pass the rows themselves, or load_clicks(..., encoder=model.encoder)"
        )


@contextmanager
def _as_before_if_it_fails(model: Any) -> Iterator[None]:
    """Around a run: where it is broken off, the model is what it was."""
    sizes, weights, device, mode = model.require_built(), model.state_dict(), model.device, model.training
    kept = {name: getattr(model, name) for name in ("config", "chosen", "_asked", "_given", "_fitted_on", *model.keeps)}
    try:
        yield
    except BaseException:
        model.config = kept["config"]
        model.build(sizes, torch.Generator().manual_seed(0)).load_state_dict(weights)
        model.to(device).train(mode)
        for name, value in kept.items():
            setattr(model, name, value)
        raise
