"""Claims about live users and sessions: an event changes what comes next, and a carried state is the one read anew."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from deeprec import models
from deeprec.contract import NEW_USERS, Queries
from deeprec.data import Interactions, UnknownIdError, from_frame
from deeprec.serve import LiveStates


@pytest.fixture(scope="module")
def data() -> Interactions:
    """Users u0 ... u79; item i is most often followed by i + 1."""
    draw = np.random.default_rng(0)
    rows = []
    for user in range(80):
        item = int(draw.integers(0, 20))
        for time in range(int(draw.integers(4, 10))):
            rows.append((f"u{user}", item, time))
            item = int(draw.integers(0, 20)) if draw.random() < 0.1 else (item + 1) % 20
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return from_frame(frame, timestamp="timestamp", duplicates="keep")


@pytest.fixture(scope="module")
def carried(data: Interactions) -> Any:
    options = {"factors": 8, "num_layers": 2, "batch_size": 8, "num_negatives": 10, "epochs": 3, "lr": 0.1}
    return models.create("gru4rec", **options).fit(data, seed=0, protocol="next-item", baselines=False)


@pytest.fixture(scope="module")
def read_anew(data: Interactions) -> Any:
    """A model that carries no state."""
    return models.create("item-knn").fit(data, seed=0, baselines=False)


def vector(live: LiveStates, key: Any) -> torch.Tensor:
    entry = live._entries[key]
    assert entry.state is not None
    return torch.stack([part[0] for part in entry.state])


def recomputed(model: Any, items: list[int]) -> torch.Tensor:
    codes = torch.from_numpy(model.item_ids.encode(items)).long()
    return torch.stack([part[0] for part in model.encode(Queries(history=(torch.tensor([0, len(codes)]), codes)))])


def test_an_event_changes_the_next_recommendation(carried: Any) -> None:
    live = carried.live()
    live.add("visitor", 4)
    first = live.recommend("visitor", 3)
    live.add("visitor", 11)
    second = live.recommend("visitor", 3)
    assert first.columns == ["rank", "item_id", "score"]
    assert not first.equals(second)
    assert first.equals(carried.recommend_for_history([4], 3))
    assert second["item_id"].to_list() == carried.recommend_for_history([4, 11], 3)["item_id"].to_list()


def test_the_carried_state_is_the_one_read_anew(carried: Any, tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    items = draw.integers(0, 20, 200).tolist()
    live = carried.live()
    for at in range(0, 100, 5):
        live.add(17, items[at : at + 5])
    torch.testing.assert_close(vector(live, 17), recomputed(carried, items[:100]), atol=1e-6, rtol=0)
    live = LiveStates.load(carried, live.save(tmp_path / "live.safetensors"))
    for item in items[100:]:
        live.add(17, item)
    torch.testing.assert_close(vector(live, 17), recomputed(carried, items), atol=1e-6, rtol=0)
    assert live.history(17) == items


def test_the_state_knows_of_items_that_are_no_longer_kept(carried: Any) -> None:
    items = np.random.default_rng(5).integers(0, 20, 60).tolist()
    live = carried.live(max_items=4)
    for item in items:
        live.add("long", item)
    assert live.history("long") == items[-4:]
    torch.testing.assert_close(vector(live, "long"), recomputed(carried, items), atol=1e-6, rtol=0)


def test_known_users_begin_with_their_training_history(carried: Any, read_anew: Any, data: Interactions) -> None:
    assert data.order is not None
    rows = np.flatnonzero(data.user_ids.encode(["u5"])[0] == data.users)
    whole = data.item_ids.decode(data.items[rows[np.argsort(data.order[rows], kind="stable")]]).tolist()
    live = carried.live()
    assert live.history("u5") == whole[:-2]  # the last two are held out
    assert live.recommend("u5", 5)["item_id"].to_list() == carried.recommend("u5", 5)["item_id"].to_list()
    before = live.history("u5")
    live.add("u5", 3)
    torch.testing.assert_close(vector(live, "u5"), recomputed(carried, [*before, 3]), atol=1e-6, rtol=0)
    assert live.forget("u5")
    assert not live.forget("u5")
    assert live.history("u5") == before
    again = read_anew.live()
    again.add("u5", 3)
    assert set(again.history("u5")) >= set(read_anew.live().history("u5"))


def test_a_model_without_a_state_reads_its_history_again(read_anew: Any) -> None:
    live = read_anew.live()
    live.add("visitor", [4, 5])
    first = live.recommend("visitor", 4)
    assert first.equals(read_anew.recommend_for_history([4, 5], 4))
    live.add("visitor", 12)
    assert live.recommend("visitor", 4).equals(read_anew.recommend_for_history([4, 5, 12], 4))


def test_what_was_met_may_come_again_where_asked_for(carried: Any) -> None:
    live = carried.live()
    live.add(1, list(range(19)))
    assert live.recommend(1, 20)["item_id"].to_list() == [19]
    assert len(live.recommend(1, 20, exclude_seen=False)) == 20
    assert live.recommend(1, 5, exclude_seen=False, allow=[2, 3])["item_id"].sort().to_list() == [2, 3]
    assert 4 not in live.recommend(1, 20, exclude_seen=False, deny=[4])["item_id"].to_list()


def test_whoever_was_not_used_for_longest_is_forgotten_first(carried: Any) -> None:
    live = carried.live(max_users=2)
    live.add("a", 1)
    live.add("b", 2)
    live.recommend("a")
    live.add("c", 3)
    assert ("a" in live, "b" in live, "c" in live, len(live)) == (True, False, True, 2)
    with pytest.raises(ValueError, match=r"must have an event, got 'b' without any; call add\('b', item\) first"):
        live.recommend("b")


@pytest.mark.parametrize("kind", ["carried", "read_anew"])
def test_threads_add_and_ask_at_the_same_time(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    live, errors = model.live(max_users=50), []

    def work(number: int) -> None:
        try:
            for step in range(30):
                live.add("shared", (number + step) % 20)
                live.add(number, step % 20)
                live.recommend(number, 3, exclude_seen=False)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(live.history("shared")) == 120
    for number in range(4):
        assert live.history(number) == [step % 20 for step in range(30)]
    if kind == "carried":
        torch.testing.assert_close(vector(live, "shared"), recomputed(model, live.history("shared")), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "again", [lambda live, path: LiveStates.load(live.model, live.save(path)), lambda live, path: copy.deepcopy(live)]
)
@pytest.mark.parametrize("kind", ["carried", "read_anew"])
def test_all_goes_on_from_a_file(
    kind: str, again: Callable[[LiveStates, Path], LiveStates], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    live = request.getfixturevalue(kind).live(max_users=9, max_items=3)
    live.add("a", [1, 2, 3, 4])
    live.add(7, 5)
    live.recommend("a")
    other = again(live, tmp_path / "live")
    assert (other.max_users, other.max_items, len(other)) == (9, 3, 2)
    for key in ("a", 7):
        assert other.history(key) == live.history(key)
        assert other.recommend(key, 5).equals(live.recommend(key, 5))


def test_files_of_other_weights_and_damaged_ones_are_refused(carried: Any, read_anew: Any, tmp_path: Path) -> None:
    live = carried.live()
    live.add("a", 1)
    path = live.save(tmp_path / "live")
    other = models.create("gru4rec", schema=carried.schema, config=carried.config)
    other.user_ids, other.item_ids = carried.user_ids, carried.item_ids
    with pytest.raises(ValueError, match="is of a gru4rec with other weights"):
        LiveStates.load(other, path)
    content = bytearray(path.read_bytes())
    content[-60] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged or of another version"):
        LiveStates.load(carried, path)
    with pytest.raises(FileNotFoundError, match="live: no file"):
        LiveStates.load(carried, tmp_path / "nothing")


def test_bad_input_changes_nothing(carried: Any) -> None:
    live = carried.live()
    live.add("a", [1, 2])
    before = vector(live, "a").clone()
    with pytest.raises(UnknownIdError, match="999"):
        live.add("a", [3, 999])
    with pytest.raises(TypeError, match=r"user_id must be text or a whole number, got 1\.5"):
        live.add(1.5, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="item_ids"):
        live.add("a", "text")
    live.add("a", [])
    live.add("nobody", [])
    assert live.history("a") == [1, 2]
    assert torch.equal(vector(live, "a"), before)
    assert len(live) == 1
    with pytest.raises(ValueError, match="k must be >= 1"):
        live.recommend("a", 0)
    for options in ({"max_users": 0}, {"max_items": -1}, {"max_users": True}):
        with pytest.raises(ValueError, match="must be a whole number >= 1"):
            carried.live(**options)


def test_models_that_cannot_are_named() -> None:
    with pytest.raises(ValueError, match="has no id maps; call fit"):
        models.create("gru4rec").live()
    for name in models.recommenders():
        if NEW_USERS not in models.model_class(name).capabilities:
            with pytest.raises(ValueError, match="live: a model is needed that serves users that it never saw"):
                models.create(name).live()
