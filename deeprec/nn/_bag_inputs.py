"""The forms in which a layer over several features takes its ids, and the one in which the kernels do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

# Ids of one feature: [B], [B, L], or ([nnz], offsets [B + 1]).
FeatureIds: TypeAlias = "Tensor | tuple[Tensor, Tensor]"
Ids: TypeAlias = "Tensor | Mapping[str, FeatureIds]"


class BagInputs(NamedTuple):
    """The bags of F features, feature after feature.

    Attributes:
        ids: [F, B] of any strides, one id a bag, or [nnz] with offsets.
        offsets: [F * B + 1], or None.
        values: one number an id, in the shape of ids, or None.
        shapes: what the ids of each feature looked like, without the batch: () for one id a bag, (L,), or None for
            bags of their own lengths.
    """

    ids: Tensor
    offsets: Tensor | None
    values: Tensor | None
    shapes: tuple[tuple[int, ...] | None, ...]

    @property
    def batch(self) -> int:
        """B, the bags of each feature."""
        return self.ids.shape[1] if self.offsets is None else (self.offsets.shape[0] - 1) // len(self.shapes)

    def by_feature(self) -> list[Tensor]:
        """The ids of each feature, [nnz_f]; reads the offsets."""
        if self.offsets is None:
            return list(self.ids)
        count, batch = len(self.shapes), self.batch
        bounds = self.offsets[::batch].tolist() if batch else [0] * (count + 1)
        return [self.ids[bounds[f] : bounds[f + 1]] for f in range(count)]


def bag_inputs(
    owner: str,
    features: Sequence[str],
    ids: Ids,
    offsets: Tensor | None,
    values: Tensor | Mapping[str, Tensor] | None,
    values_name: str,
) -> BagInputs:
    """Bring the ids of a batch, and the number that goes with each, into the form of the kernels.

    Args:
        owner: who asks, for errors.
        features: names in order, F of them.
        ids: [B, F], one id a feature; or [nnz] feature after feature, with offsets; or a mapping from feature to [B],
            [B, L] or ([nnz_f], offsets [B + 1]).
        offsets: [F * B + 1] where ids are [nnz], else None.
        values: one number an id: in the shape of ids, or a mapping from feature to such; features without count as 1.
        values_name: what the caller calls them, for errors.
    Raises:
        ValueError: as the message says.
    """
    count = len(features)
    if isinstance(ids, Mapping):
        if offsets is not None or isinstance(values, Tensor):
            raise ValueError(f"{owner}: offsets and {values_name} must go with each feature where ids are a mapping")
        return _of_mapping(owner, features, ids, values or {}, values_name)
    if isinstance(values, Mapping):
        raise ValueError(f"{owner}: {values_name} must be a tensor in the shape of ids where ids are one")
    if offsets is not None:
        return BagInputs(ids, offsets, values, (None,) * count)
    if ids.dim() != 2 or ids.shape[1] != count:
        raise ValueError(
            f"{owner}: ids must be [B, {count}], one id for each of {_some(features)}; got {tuple(ids.shape)}; give "
            "offsets or a mapping from feature to ids for several"
        )
    if values is not None and values.shape != ids.shape:
        raise ValueError(f"{owner}: {values_name} must be {tuple(ids.shape)} like ids, got {tuple(values.shape)}")
    return BagInputs(ids.T, None, None if values is None else values.T, ((),) * count)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:3])}, ..., {names[-1]}"


def _check_features(owner: str, features: Sequence[str], got: Mapping[str, object], name: str, is_whole: bool) -> None:
    missing = [feature for feature in features if feature not in got] if is_whole else []
    unknown = [feature for feature in got if feature not in features]
    if missing or unknown:
        raise ValueError(
            f"{owner}: {name} must have one entry for each of {_some(features)}; "
            + "; ".join(f"{what} {names}" for what, names in (("missing", missing), ("unknown", unknown)) if names)
        )


def _of_mapping(
    owner: str,
    features: Sequence[str],
    ids: Mapping[str, FeatureIds],
    values: Mapping[str, Tensor],
    values_name: str,
) -> BagInputs:
    _check_features(owner, features, ids, "ids", True)
    _check_features(owner, features, values, values_name, False)
    flat, bounds, shapes, lengths = [], [], [], []
    for feature in features:
        given = ids[feature]
        some, own = given if isinstance(given, tuple) else (given, None)
        if some.dim() not in ((1, 2) if own is None else (1,)):
            raise ValueError(
                f"{owner}: ids of {feature!r} must be [B], [B, L] or ([nnz], offsets [B + 1]), got {tuple(some.shape)}"
            )
        if feature in values and values[feature].shape != some.shape:
            raise ValueError(
                f"{owner}: {values_name} of {feature!r} must be {tuple(some.shape)} like its ids, got "
                f"{tuple(values[feature].shape)}"
            )
        if own is not None and (own.dim() != 1 or own.shape[0] < 1):
            raise ValueError(f"{owner}: offsets of {feature!r} must be [B + 1], got {tuple(own.shape)}")
        flat.append(some)
        bounds.append(own)
        shapes.append(None if own is not None else tuple(some.shape[1:]))
        lengths.append(some.shape[0] if own is None else own.shape[0] - 1)
    if any(length != lengths[0] for length in lengths):  # not by a set: exported sizes have no hash
        raise ValueError(
            f"{owner}: all features must have one number of bags, got {dict(zip(features, lengths, strict=True))}"
        )
    batch = lengths[0]
    kind = torch.int64 if any(some.dtype == torch.int64 for some in flat) else flat[0].dtype
    flat = [some.to(kind) for some in flat]
    numbers = _numbers(flat, [values.get(feature) for feature in features])
    if all(shape == () for shape in shapes):
        together = None if numbers is None else torch.stack(numbers)
        return BagInputs(torch.stack(flat), None, together, tuple(shapes))
    starts, done = [], 0
    for some, own in zip(flat, bounds, strict=True):
        if own is None:
            own = torch.arange(batch + 1, dtype=kind, device=some.device) * (1 if some.dim() == 1 else some.shape[1])
        else:
            _check_bounds(owner, own, some.shape[0])
        starts.append(own[:-1].to(kind) + done)
        done += some.numel()
    ends = torch.full((1,), done, dtype=kind, device=flat[0].device)
    everything = torch.cat([some.reshape(-1) for some in flat])
    together = None if numbers is None else torch.cat([some.reshape(-1) for some in numbers])
    return BagInputs(everything, torch.cat([*starts, ends]), together, tuple(shapes))


def _check_bounds(owner: str, offsets: Tensor, nnz: int) -> None:
    """A first offset beyond 0, or a last one before nnz, would give ids to the bag of another feature."""
    message = f"{owner}: offsets of a feature must begin with 0 and end with its number of ids"
    is_whole = (offsets[0] == 0) & (offsets[-1] == nnz)
    if torch.compiler.is_compiling() or offsets.device.type != "cpu":
        torch._assert_async(is_whole, message)
    elif not is_whole:
        raise ValueError(f"{message} ({nnz}), got {int(offsets[0])} and {int(offsets[-1])}")


def _numbers(ids: list[Tensor], values: list[Tensor | None]) -> list[Tensor] | None:
    given = next((some for some in values if some is not None), None)
    if given is None:
        return None
    return [
        torch.ones(some.shape, dtype=given.dtype, device=given.device) if mine is None else mine
        for some, mine in zip(ids, values, strict=True)
    ]
