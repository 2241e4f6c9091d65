"""The forms in which a layer over several features takes its ids, and the one in which the kernels do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from deeprec.kernels.faults import report_where
from deeprec.nn._nested import flat_nested_pair
from deeprec.nn._torchrec import (
    JaggedTensor,
    KeyedJaggedTensor,
    check_one_stride,
    is_jagged,
    is_keyed_jagged,
    jagged_offsets,
)
from deeprec.nn.layer import check_device

# Ids of one feature: [B], [B, L], nested [B, ragged], ([nnz], offsets [B + 1]), or a JaggedTensor of TorchRec.
FeatureIds: TypeAlias = "Tensor | tuple[Tensor, Tensor] | JaggedTensor"
Ids: TypeAlias = "Tensor | Mapping[str, FeatureIds] | KeyedJaggedTensor"


class Features(NamedTuple):
    """Which feature looks up in which table.

    Attributes:
        tables: names of the tables.
        names: names of the features, F of them, in the order in which tables first name them: the columns of ids.
        lookups: the feature of each lookup, table after table; longer than names where tables share a feature.
        outputs: what the result of each lookup is called: as its feature, FEATURE@TABLE where tables share it.
        table_of: the table of each lookup.
        padding: its padding id, >= 0, or None.
    """

    tables: tuple[str, ...]
    names: tuple[str, ...]
    lookups: tuple[str, ...]
    outputs: tuple[str, ...]
    table_of: tuple[int, ...]
    padding: tuple[int | None, ...]


class BagInputs(NamedTuple):
    """The bags of F lookups, lookup after lookup.

    Attributes:
        ids: [F, B] of any strides, one id a bag, or [nnz] with offsets.
        offsets: [F * B + 1], or None.
        values: one number an id, in the shape of ids, or None.
        shapes: what the ids of each lookup looked like, without the batch: () for one id a bag, (L,), None for bags of
            their own lengths, or the nested tensor they were.
    """

    ids: Tensor
    offsets: Tensor | None
    values: Tensor | None
    shapes: tuple[tuple[int, ...] | Tensor | None, ...]

    @property
    def batch(self) -> int:
        """B, the bags of each lookup."""
        return self.ids.shape[1] if self.offsets is None else (self.offsets.shape[0] - 1) // len(self.shapes)

    def by_feature(self) -> list[Tensor]:
        """The ids of each lookup, [nnz_f]; reads the offsets."""
        if self.offsets is None:
            return list(self.ids)
        return [self.ids[first:last] for first, last in pairwise(_bounds(self.offsets, len(self.shapes), self.batch))]


def bag_inputs(
    owner: str,
    features: Features,
    table: Tensor,
    ids: Ids,
    offsets: Tensor | None,
    values: Tensor | Mapping[str, Tensor] | None,
    values_name: str,
    *,
    is_weighted: bool | None = None,
) -> BagInputs:
    """Bring the ids of a batch, and the number that goes with each, into the form of the kernels.

    Args:
        owner: who asks, for errors.
        features: what looks up; F names.
        table: any of the tables: where the ids must be.
        ids: [B, F], one id a feature; or [nnz] feature after feature, with offsets; or a mapping from feature to [B],
            [B, L], a nested tensor [B, ragged], ([nnz_f], offsets [B + 1]) or a JaggedTensor; or a KeyedJaggedTensor.
        offsets: [F * B + 1] where ids are [nnz], else None.
        values: one number an id: in the shape of ids, or a mapping from feature to such; features without count as 1.
        values_name: what the caller calls them, for errors.
        is_weighted: the weights of a jagged tensor are values (True: they must be there), or are not looked at
            (False); None: values where they are there.
    Raises:
        ValueError: as the message says.
    """
    if isinstance(ids, Tensor):
        inputs = _of_tensor(owner, features, ids, offsets, values, values_name)
    elif offsets is not None or isinstance(values, Tensor):
        raise ValueError(f"{owner}: offsets and {values_name} must go with each feature where ids are a mapping")
    elif is_keyed_jagged(ids):
        if values is not None:
            raise ValueError(f"{owner}: {values_name} must be the weights of the KeyedJaggedTensor, got a mapping")
        inputs = _of_keyed(owner, features, ids, is_weighted)
    elif hasattr(ids, "keys"):  # a Mapping, or a TensorDict, which does not say that it is one
        inputs = _of_mapping(owner, features, ids, values or {}, values_name, is_weighted, table)  # type: ignore[arg-type]
    else:
        raise TypeError(
            f"{owner}: ids must be a tensor, a mapping from feature to ids, or a KeyedJaggedTensor, got "
            f"{type(ids).__name__}"
        )
    check_device(owner, table, "ids", inputs.ids)
    if inputs.offsets is not None:
        check_device(owner, table, "offsets", inputs.offsets)
    if inputs.values is not None:
        check_device(owner, table, values_name, inputs.values)
    return inputs


def _of_tensor(
    owner: str,
    features: Features,
    ids: Tensor,
    offsets: Tensor | None,
    values: Tensor | Mapping[str, Tensor] | None,
    values_name: str,
) -> BagInputs:
    names, lookups = features.names, features.lookups
    count = len(names)
    if values is not None and not isinstance(values, Tensor):
        raise ValueError(f"{owner}: {values_name} must be a tensor in the shape of ids where ids are one")
    if offsets is not None:
        if len(lookups) == count:
            return BagInputs(ids, offsets, values, (None,) * count)
        return _picked(owner, ids, offsets, values, count, [names.index(name) for name in lookups])
    if ids.is_nested or ids.dim() != 2 or ids.shape[1] != count:
        got = "a nested tensor" if ids.is_nested else tuple(ids.shape)
        raise ValueError(
            f"{owner}: ids must be [B, {count}], one id for each of {_short_list(names)}; got {got}; give offsets or a "
            "mapping from feature to ids for several"
        )
    if values is not None and values.shape != ids.shape:
        raise ValueError(f"{owner}: {values_name} must be {tuple(ids.shape)} like ids, got {tuple(values.shape)}")
    if len(lookups) > count:
        columns = [names.index(name) for name in lookups]
        ids = torch.stack([ids[:, column] for column in columns], 1)
        values = None if values is None else torch.stack([values[:, column] for column in columns], 1)
    return BagInputs(ids.T, None, None if values is None else values.T, ((),) * len(lookups))


def _short_list(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:3])}, ..., {names[-1]}"


def _check_features(owner: str, features: Sequence[str], got: Sequence[str], name: str, is_whole: bool) -> None:
    known, there = set(features), set(got)
    missing = [feature for feature in features if feature not in there] if is_whole else []
    unknown = [feature for feature in got if feature not in known]
    if missing or unknown:
        raise ValueError(
            f"{owner}: {name} must have one entry for each of {_short_list(features)}; "
            + "; ".join(f"{what} {names}" for what, names in (("missing", missing), ("unknown", unknown)) if names)
        )


def _of_keyed(owner: str, features: Features, keyed: KeyedJaggedTensor, is_weighted: bool | None) -> BagInputs:
    check_one_stride(owner, keyed)
    keys, ids, offsets = keyed.keys(), keyed.values(), jagged_offsets(keyed)
    weights = _weights(owner, keyed, is_weighted)
    if list(features.lookups) == keys:
        return BagInputs(ids, offsets, weights, (None,) * len(keys))
    place = {key: number for number, key in enumerate(keys)}
    _check_features(owner, features.names, [key for key in features.names if key in place], "KeyedJaggedTensor", True)
    return _picked(owner, ids, offsets, weights, len(keys), [place[name] for name in features.lookups])


def _weights(owner: str, jagged: JaggedTensor, is_weighted: bool | None) -> Tensor | None:
    weights = None if is_weighted is False else jagged.weights_or_none()
    if weights is None and is_weighted:
        raise ValueError(f"{owner}: a jagged tensor must have weights where is_weighted is True, got none")
    return weights


def _bounds(offsets: Tensor, count: int, batch: int) -> list[int]:
    """Where the ids of each of `count` features begin, and where the last ends."""
    return offsets[::batch].tolist() if batch else [0] * (count + 1)


def _picked(
    owner: str, ids: Tensor, offsets: Tensor, values: Tensor | None, count: int, order: Sequence[int]
) -> BagInputs:
    """The bags of `count` features in another order, with some left out or repeated."""
    if offsets.dim() != 1 or not offsets.shape[0] or (offsets.shape[0] - 1) % count:
        raise ValueError(f"{owner}: offsets must be [F * B + 1] with F = {count}, got {tuple(offsets.shape)}")
    if values is not None and values.shape != ids.shape:
        raise ValueError(f"{owner}: weights must be {tuple(ids.shape)} like ids, got {tuple(values.shape)}")
    batch = (offsets.shape[0] - 1) // count
    lengths = offsets.diff().view(count, batch)[list(order)].reshape(-1)
    bounds = torch.cat([lengths.new_zeros(1), lengths.cumsum(0, dtype=lengths.dtype)])
    shapes = (None,) * len(order)
    if torch.compiler.is_compiling():  # its sizes must not depend on what the offsets hold, if they need not
        is_permutation = sorted(order) == list(range(count))
        shift = offsets[:-1].view(count, batch)[list(order)].reshape(-1) - bounds[:-1]
        size = ids.shape[0] if is_permutation else None
        moved = torch.repeat_interleave(shift, lengths, output_size=size)
        places = torch.arange(moved.shape[0], device=ids.device) + moved
        return BagInputs(ids[places], bounds, None if values is None else values[places], shapes)
    starts = _bounds(offsets, count, batch)
    if starts[0] != 0 or starts[-1] != ids.shape[0] or any(first > last for first, last in pairwise(starts)):
        raise ValueError(
            f"{owner}: offsets must ascend from 0 to the number of ids ({ids.shape[0]}), got {starts} at the first bags"
        )
    runs: list[list[int]] = []  # neighbours stay together, so that one run is a view
    for place in order:
        if runs and runs[-1][1] == place:
            runs[-1][1] = place + 1
        else:
            runs.append([place, place + 1])

    def picked(flat: Tensor) -> Tensor:
        parts = [flat[starts[first] : starts[last]] for first, last in runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return BagInputs(picked(ids), bounds, None if values is None else picked(values), shapes)


class _OneFeature(NamedTuple):
    """The ids of one lookup as a mapping gives them: ids [B], [B, L], or [nnz] with offsets."""

    ids: Tensor
    offsets: Tensor | None
    values: Tensor | None
    shape: tuple[int, ...] | Tensor | None

    @property
    def batch(self) -> int:
        return self.ids.shape[0] if self.offsets is None else self.offsets.shape[0] - 1


def _of_feature(
    owner: str, feature: str, given: FeatureIds, values: Tensor | None, values_name: str, is_weighted: bool | None
) -> _OneFeature:
    name = f"ids of {feature!r}"
    shape: tuple[int, ...] | Tensor | None = None
    own: Tensor | None
    if isinstance(given, Tensor) and given.is_nested:
        ids, own, values = flat_nested_pair(owner, name, given, f"{values_name} of {feature!r}", values)
        shape = given
    elif isinstance(given, (Tensor, tuple)):
        ids, own = given if isinstance(given, tuple) else (given, None)
    elif is_jagged(given):
        if values is not None:
            raise ValueError(f"{owner}: {values_name} of {feature!r} must be the weights of its JaggedTensor")
        ids, own, values = given.values(), jagged_offsets(given), _weights(owner, given, is_weighted)
    else:
        kind = type(given).__name__
        raise TypeError(f"{owner}: {name} must be a tensor, (ids, offsets) or a JaggedTensor, got {kind}")
    if ids.dim() not in ((1, 2) if own is None else (1,)):
        raise ValueError(f"{owner}: {name} must be [B], [B, L] or ([nnz], offsets [B + 1]), got {tuple(ids.shape)}")
    if ids.dtype not in (torch.int32, torch.int64):  # another feature's int64 would make ids of them
        raise TypeError(f"{owner}: {name} must be int32 or int64, got {ids.dtype}; convert with .long()")
    if values is not None and values.shape != ids.shape:
        raise ValueError(
            f"{owner}: {values_name} of {feature!r} must be {tuple(ids.shape)} like its ids, got {tuple(values.shape)}"
        )
    if own is not None and (own.dim() != 1 or own.shape[0] < 1):
        raise ValueError(f"{owner}: offsets of {feature!r} must be [B + 1], got {tuple(own.shape)}")
    return _OneFeature(ids, own, values, tuple(ids.shape[1:]) if own is None else shape)


def _of_mapping(
    owner: str,
    features: Features,
    ids: Mapping[str, FeatureIds],
    values: Mapping[str, Tensor],
    values_name: str,
    is_weighted: bool | None,
    table: Tensor,
) -> BagInputs:
    names = features.names
    shapes: tuple[tuple[int, ...] | Tensor | None, ...] = ((),) * len(features.lookups)
    if not values and len(ids) == len(names) and not torch.compiler.is_compiling():
        singles = [ids.get(name) for name in features.lookups]
        if all(type(ids) is Tensor and ids.dim() == 1 for ids in singles):
            try:
                return BagInputs(torch.stack(singles), None, None, shapes)  # type: ignore[arg-type]
            except RuntimeError:
                pass  # said below in full
    # A batch of ragged features serves several layers: what is of no use here is not a slip of the pen.
    known = set(names)
    given = [name for name in ids.keys() if name in known or not _is_ragged(ids[name])]  # noqa: SIM118
    _check_features(owner, names, given, "ids", True)
    _check_features(owner, names, list(values), values_name, False)
    each = {name: _of_feature(owner, name, ids[name], values.get(name), values_name, is_weighted) for name in names}
    for name, part in each.items():  # before they are joined, where torch would name no feature
        check_device(owner, table, f"ids of {name!r}", part.ids)
    parts = [each[name] for name in features.lookups]
    batch = parts[0].batch
    if any(part.batch != batch for part in parts):  # not by a set: exported sizes have no hash
        batches = {name: part.batch for name, part in each.items()}
        raise ValueError(f"{owner}: all features must have one number of bags, got {batches}")
    shapes = tuple(part.shape for part in parts)
    kind = torch.int64 if any(part.ids.dtype == torch.int64 for part in parts) else parts[0].ids.dtype
    flat = [part.ids.to(kind) for part in parts]
    numbers = _numbers(parts)
    if all(part.offsets is None and part.ids.dim() == 1 for part in parts):
        return BagInputs(torch.stack(flat), None, None if numbers is None else torch.stack(numbers), shapes)
    starts, done = [], 0
    for entries, part in zip(flat, parts, strict=True):
        own = part.offsets
        if own is None:
            length = 1 if entries.dim() == 1 else entries.shape[1]
            own = torch.arange(batch + 1, dtype=kind, device=entries.device) * length
        else:
            _check_bounds(owner, own, entries.shape[0])
        starts.append(own[:-1].to(kind) + done)
        done += entries.numel()
    ends = torch.full((1,), done, dtype=kind, device=flat[0].device)
    everything = torch.cat([entries.reshape(-1) for entries in flat])
    together = None if numbers is None else torch.cat([column.reshape(-1) for column in numbers])
    return BagInputs(everything, torch.cat([*starts, ends]), together, shapes)


def _is_ragged(given: FeatureIds) -> bool:
    return given.is_nested if isinstance(given, Tensor) else is_jagged(given)


def _check_bounds(owner: str, offsets: Tensor, nnz: int) -> None:
    """A first offset beyond 0, or a last one before nnz, would give ids to the bag of another feature."""
    message = f"{owner}: offsets of a feature must begin with 0 and end with its number of ids"
    is_whole = (offsets[0] == 0) & (offsets[-1] == nnz)
    if torch.compiler.is_compiling() or offsets.device.type != "cpu":
        report_where(~is_whole, ValueError, message)
    elif not is_whole:
        raise ValueError(f"{message} ({nnz}), got {int(offsets[0])} and {int(offsets[-1])}")


def _numbers(parts: Sequence[_OneFeature]) -> list[Tensor] | None:
    given = next((part.values for part in parts if part.values is not None), None)
    if given is None:
        return None
    return [
        torch.ones(part.ids.shape, dtype=given.dtype, device=given.device) if part.values is None else part.values
        for part in parts
    ]
