"""Live users and sessions: each event that is added changes the next recommendation, and nothing is trained."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deeprec._files import require_regular, writing
from deeprec._tensors import SEAL, require_sealed, write_tensors
from deeprec.contract import NEW_USERS, AnyModel, Queries
from deeprec.device import device_of, to_device
from deeprec.nn.scoring import KeptLists, topk
from deeprec.registry import require_capability
from deeprec.serve.arguments import codes_of, require_flag, require_k
from deeprec.serve.recommend import id_maps, item_filter, ranked_columns
from deeprec.surroundings import served

if TYPE_CHECKING:
    from typing_extensions import Self

Key = str | int
_REMEDY = "begin with model.live() anew"


@dataclass
class _Entry:
    """What is known of one user or session.

    Attributes:
        items: internal ids in the order they were met, the last `max_items` of them.
        state: of the model after all events, [1, ...] each; None: to be computed from `items`.
        user: internal id of a user of the training data; -1 for others.
    """

    items: list[int]
    state: tuple[Tensor, ...] | None = None
    user: int = -1


class LiveStates:
    """The users and sessions that are served at present, by a trained model.

    A model that carries a state (it has `advance`, as GRU4Rec does) takes one step for an event, whatever came before;
    of any other the history is kept and read again when a recommendation is asked for. A user of the training data
    begins with what they did there, and so does one who comes back after they were forgotten; everybody else with
    nothing. Safe to use from several threads. The model must stay as it is: after more training make another.

    Args:
        model: trained, one that serves users that it never saw.
        max_users: users and sessions that are kept; beyond it whoever was not asked for or added to for longest is
            forgotten, >= 1.
        max_items: last items of each that are kept, >= 1: what `exclude_seen` leaves out, and what a model without a
            state to carry reads.
    Raises:
        ValueError: a model without data, one that serves known users only, or a number out of range.
    """

    def __init__(self, model: AnyModel, *, max_users: int = 100_000, max_items: int = 1000) -> None:
        require_capability(model, "live", NEW_USERS)
        id_maps(model)
        for name, value in (("max_users", max_users), ("max_items", max_items)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"live: {name} must be a whole number >= 1, got {value!r}; leave it out")
        self.model, self.max_users, self.max_items = model, max_users, max_items
        self._lock = threading.RLock()
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()

    def __len__(self) -> int:
        """Users and sessions that are kept."""
        return len(self._entries)

    def __contains__(self, user_id: object) -> bool:
        """Whether something is kept of a user or session."""
        return user_id in self._entries

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {**{name: value for name, value in vars(self).items() if name != "_lock"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.RLock())

    def add(self, user_id: Key, item_ids: Any) -> None:
        """What a user or session did next: one item, or several in the order they were met.

        Args:
            user_id: text or a whole number; one that the model does not know begins with nothing.
            item_ids: external ids.
        Raises:
            UnknownIdError (a ValueError): an item that the model does not know; nothing has been added then.
            TypeError: ids of another type.
        """
        key, codes = _key(user_id), codes_of("live.add", "item_ids", item_ids, self.model.item_ids)
        if not len(codes):
            return
        with self._lock:
            entry, state = self._entry(key), None
            if hasattr(self.model, "advance"):
                state = _advanced(self.model, entry.items if entry.state is None else entry.state, codes)
            self._keep(key, _Entry([*entry.items, *codes.tolist()][-self.max_items :], state, entry.user))

    def recommend(
        self, user_id: Key, k: int = 10, *, exclude_seen: bool = True, allow: Any = None, deny: Any = None
    ) -> pl.DataFrame:
        """The k best next items of a user or session.

        Args:
            user_id: one to whom events were added, or a user of the training data.
            k: list length, >= 1.
            exclude_seen: leave out the items that are kept of the user, and those met in the data of the training.
            allow, deny: external ids of the only items that may come, and of items that may not.
        Returns:
            rank (from 1), item_id, score; fewer than k rows where fewer items are left.
        Raises:
            ValueError: nothing is known of the user, an unknown item, or k < 1.
        """
        name, (_, items_map) = "live.recommend", id_maps(self.model)
        key, k = _key(user_id), min(require_k(name, k), len(items_map))
        only, never = item_filter(name, "allow", allow, items_map), item_filter(name, "deny", deny, items_map)
        hides_seen = require_flag(name, "exclude_seen", exclude_seen)
        with self._lock:
            entry = self._entry(key)
            if not entry.items:
                raise ValueError(
                    f"{name}: user_id must have an event, got {user_id!r} without any; call add({user_id!r}, item) "
                    "first, or serve what is popular"
                )
            if entry.state is None:
                entry.state = _encoded(self.model, entry.items)
            self._keep(key, entry)
            state, met = entry.state, np.unique(np.array(entry.items, dtype=np.int32))
        if entry.user >= 0 and self.model.seen is not None:
            met = np.union1d(met, self.model.seen.items[slice(*self.model.seen.offsets[entry.user : entry.user + 2])])
        return _recommended(self.model, state, met if hides_seen else None, k, only, never)

    def history(self, user_id: Key) -> list[Any]:
        """External ids of the items that are kept of a user or session, in order."""
        with self._lock:
            entry = self._entries.get(_key(user_id)) or self._begun(_key(user_id))
            return list(self.model.item_ids.decode(np.array(entry.items, dtype=np.int64)).tolist())

    def forget(self, user_id: Key) -> bool:
        """Keep nothing of a user or session; returns whether there was something."""
        with self._lock:
            return self._entries.pop(_key(user_id), None) is not None

    def _keep(self, key: Key, entry: _Entry) -> None:
        """As the last one that was used; those beyond the limit are forgotten."""
        self._entries[key] = entry
        self._entries.move_to_end(key)
        while len(self._entries) > self.max_users:
            self._entries.popitem(last=False)

    def _entry(self, key: Key) -> _Entry:
        kept = self._entries.get(key)
        return self._begun(key) if kept is None else kept

    def _begun(self, key: Key) -> _Entry:
        """What a user begins with: their training history; nothing where the model does not know them."""
        model, user = self.model, _user_of(self.model, key)
        history = [] if user < 0 else _trained_history(model, user).tolist()
        state = _encoded(model, history) if history and hasattr(model, "advance") else None
        return _Entry(history[-self.max_items :], state, user)

    # -- files ---------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write all users and sessions into a file; `LiveStates.load` goes on with them.

        Raises:
            ValueError: the file cannot be written.
        """
        path = Path(path)
        with self._lock:
            entries = list(self._entries.items())
            lengths = [0, *(len(entry.items) for _, entry in entries)]
            tensors = {
                "offsets": torch.tensor(lengths, dtype=torch.int64).cumsum(0),
                "items": torch.tensor([item for _, entry in entries for item in entry.items], dtype=torch.int64),
            }
            carried = [place for place, (_, entry) in enumerate(entries) if entry.state is not None]
            if hasattr(self.model, "advance") and carried:
                tensors["carried"] = torch.tensor(carried)
                states = [entry.state for _, entry in entries if entry.state is not None]
                for number, parts in enumerate(zip(*states, strict=True)):
                    tensors[f"state/{number}"] = torch.cat(parts).cpu()
            header = {
                "keys": [key for key, _ in entries],
                "max_users": self.max_users,
                "max_items": self.max_items,
                "model": _fingerprint(self.model),
            }
        with writing(path):
            write_tensors(path, tensors, {"live": json.dumps(header)}, sealed=True)
        return path

    @classmethod
    def load(cls, model: AnyModel, path: str | Path) -> Self:
        """The users and sessions of a file, with the model that they were saved with.

        Raises:
            FileNotFoundError: no such file. ValueError: a damaged one, or that of another model.
        """
        file_path = require_regular(Path(path), "live", _REMEDY)
        try:
            with safe_open(str(file_path), framework="pt") as file:
                header = json.loads((file.metadata() or {})["live"])
                require_sealed(file_path)
                names = [name for name in file.keys() if name != SEAL]  # noqa: SIM118 (safe_open is no mapping)
                tensors = {name: file.get_tensor(name) for name in names}
            live = cls(model, max_users=header["max_users"], max_items=header["max_items"])
            is_same = header["model"] == _fingerprint(model)
            bounds, items = tensors["offsets"].tolist(), tensors["items"].tolist()
            states: dict[int, tuple[Tensor, ...]] = {}
            for row, place in enumerate(tensors["carried"].tolist() if "carried" in tensors else ()):
                parts = (tensors[f"state/{number}"] for number in range(len(names) - 3))
                states[place] = tuple(part[row : row + 1].to(device_of(model)) for part in parts)
            for place, key in enumerate(header["keys"]):
                met = items[bounds[place] : bounds[place + 1]]
                live._entries[key] = _Entry(met, states.get(place), _user_of(model, key))
        except (SafetensorError, KeyError, TypeError, ValueError, OSError, IndexError) as error:
            raise ValueError(f"live: {path} is damaged or of another version ({error}); {_REMEDY}") from error
        if not is_same:
            raise ValueError(f"live: {path} is of a {model.name} with other weights; load that model, or {_REMEDY}")
        return live


def _key(user_id: Any) -> Key:
    if isinstance(user_id, np.integer):
        return int(user_id)
    if isinstance(user_id, bool) or not isinstance(user_id, str | int):
        raise TypeError(f"live: user_id must be text or a whole number, got {user_id!r}; pass one of them")
    return user_id


def _user_of(model: AnyModel, key: Key) -> int:
    """Internal id of a user of the training data; -1 for others, whose keys are of whatever type they like."""
    try:
        return int(codes_of("live", "user_id", [key], model.user_ids, unknown=-1)[0])
    except (TypeError, ValueError):
        return -1


def _trained_history(model: AnyModel, user: int) -> NDArray[np.int64]:
    """Internal ids of what a user did in the training data, in order where the model kept it."""
    offsets = getattr(model, "history_offsets", None)
    if offsets is not None:
        first, last = (int(each) for each in offsets[user : user + 2])
        history: NDArray[np.int64] = model.history_items[first:last].cpu().numpy().astype(np.int64)
        return history
    if model.seen is None:
        return np.zeros(0, dtype=np.int64)
    first, last = model.seen.offsets[user : user + 2]
    met: NDArray[np.int64] = model.seen.items[first:last].astype(np.int64)
    return met


def _fingerprint(model: AnyModel) -> str:
    """SHA-256 of the weights and the item ids: states are of no use with others."""
    digest = hashlib.sha256(
        json.dumps([model.name, model.item_ids.values.to_list()[:1000], len(model.item_ids)]).encode()
    )
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


@served
def _encoded(model: AnyModel, history: list[int]) -> tuple[Tensor, ...]:
    """The state [1, ...] after a history of internal ids."""
    rows = torch.tensor([0, len(history)]), torch.tensor(history, dtype=torch.int64)
    state: tuple[Tensor, ...] = model.encode(Queries(history=rows))
    return state


@served
def _advanced(model: AnyModel, before: tuple[Tensor, ...] | list[int], codes: NDArray[np.int32]) -> tuple[Tensor, ...]:
    """The state after further items, from a state or a history."""
    state = before if isinstance(before, tuple) else _encoded(model, before)
    for item in to_device(torch.from_numpy(codes.astype(np.int64)), device_of(model)).split(1):
        state = model.advance(state, item)
    return state


@served
def _recommended(
    model: AnyModel,
    state: tuple[Tensor, ...],
    met: NDArray[np.int32] | None,
    k: int,
    only: NDArray[np.int32] | None,
    never: NDArray[np.int32] | None,
) -> pl.DataFrame:
    """The list of one user by the state."""
    seen = None
    if met is not None:
        seen = KeptLists().on((np.array([0, len(met)], dtype=np.int64), met), device_of(model))
    best = topk(model.scorer(state), k, seen=seen, allow=only, deny=never)
    return pl.DataFrame(ranked_columns([best], k, model.item_ids, "item_id")[1])
