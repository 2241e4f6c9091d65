"""Several views: domains by turns against their own items, what a row shows of a history, and users new to a domain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

import deeprec
from deeprec import data, models
from deeprec.batches.towers import APART
from deeprec.data import DataSchema, Domains, FeatureSchema, Interactions, Text, domains_of, from_frame
from deeprec.data.columns.reduction import Reduction
from deeprec.data.columns.terms import Terms
from deeprec.evaluate import protocol
from deeprec.models import MultiView

SMALL: dict[str, Any] = {"factors": 6, "batch_size": 64, "epochs": 2}


@pytest.fixture(scope="module")
def made() -> Interactions:
    return data.synthetic(120, 60, 1_500, domains=3)  # books, films, games


def ready(made: Interactions, **options: Any) -> tuple[MultiView, Any]:
    model = models.create("multi-view", **{**SMALL, **options})
    model.build(model.schema_for(made), torch.Generator().manual_seed(1))
    return model, model.batches(made, 3)


def shown_by(model: MultiView, made: Interactions, batch: Any) -> torch.Tensor:
    """The history that each row shows as weights [b, num_items], in plain Python."""
    codes = domains_of(made).codes
    offsets, items = made.csr()
    out = torch.zeros(len(batch), made.num_items)
    for row, (user, positive, hidden) in enumerate(
        zip(batch.users.tolist(), batch.items.tolist(), batch.hidden.tolist(), strict=True)
    ):
        met = [item for item in items[offsets[user] : offsets[user + 1]].tolist() if item != positive]
        met = [item for item in met if not (hidden and codes[item] == batch.view)]
        out[row, met] = 1 / max(len(met), 1)
    return out


def test_a_step_is_of_one_domain_and_domains_take_turns_by_their_size(made: Interactions) -> None:
    _, batches = ready(made, negatives="mixed", num_negatives=7)
    codes = domains_of(made).codes
    epoch = list(batches.epoch(0))
    assert len(epoch) == len(batches)
    assert sum(len(batch) for batch in epoch) == batches.num_examples == len(made)
    for batch in epoch:
        assert set(codes[batch.candidates]) == {batch.view}
        assert torch.equal(batch.candidates[batch.targets], batch.items)
    pairs = sorted((u, i) for batch in epoch for u, i in zip(batch.users.tolist(), batch.items.tolist(), strict=True))
    assert pairs == sorted(zip(made.users.tolist(), made.items.tolist(), strict=True))
    turns = [batch.view for batch in epoch]
    assert {*turns[:4]} == {0, 1, 2}
    for at, batch in enumerate(batches.epoch(0, skip=5), 5):
        assert torch.equal(batch.users, epoch[at].users)
        assert torch.equal(batch.candidates, epoch[at].candidates)
        assert torch.equal(batch.hidden, epoch[at].hidden)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_own_domain_is_hidden_of_users_who_met_something_elsewhere(made: Interactions, share: float) -> None:
    _, batches = ready(made, hide_own=share)
    codes = domains_of(made).codes
    met = np.zeros((120, 3), dtype=bool)
    met[made.users, codes[made.items]] = True
    assert (met.sum(axis=1) == 1).any()
    epoch = list(batches.epoch(1))
    hidden = torch.cat([batch.hidden for batch in epoch]).numpy()
    others = np.concatenate([np.delete(met[batch.users], batch.view, axis=1).any(axis=1) for batch in epoch])
    assert not hidden[~others].any()
    assert hidden[others].mean() == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("negatives", ["in-batch", "sampled", "mixed", "row", "full"])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_loss_is_minus_log_of_the_ratio_and_trains_one_item_tower(
    made: Interactions, negatives: str, similarity: str
) -> None:
    model, batches = ready(made, negatives=negatives, similarity=similarity, gamma=3.0, mask_known=False)
    batch = next(iter(batches.epoch(0)))
    loss = model.loss(batch)
    tower, items = model.user_tower, model.item_towers[batch.view]
    users = shown_by(model, made, batch) @ tower.terms + tower.bias
    vectors = items.terms[batch.candidates] + items.bias
    if similarity == "cosine":
        users, vectors = F.normalize(users, dim=1), F.normalize(vectors, dim=1)
    logits = 3.0 * users @ vectors.T
    if batch.negatives is not None:
        logits = logits.gather(1, torch.cat([batch.targets[:, None], batch.negatives], 1))
        expected = F.cross_entropy(logits, torch.zeros(len(batch), dtype=torch.int64))
    else:
        own = F.one_hot(batch.targets, len(batch.candidates)).bool()
        if batch.log_q is not None:
            logits = torch.where(own, logits, logits - batch.log_q)
        expected = F.cross_entropy(logits, batch.targets)
    torch.testing.assert_close(loss, expected, rtol=2e-5, atol=2e-5)
    loss.backward()
    assert [tower.bias.grad is not None for tower in model.item_towers] == [view == batch.view for view in range(3)]
    assert model.user_tower.bias.grad is not None


@torch.no_grad()
def test_each_domain_adds_a_vector_to_the_user_and_one_served_vector_stands_for_all(made: Interactions) -> None:
    model, batches = ready(made)
    for view, bias in enumerate(model.domain_biases):
        bias.copy_(torch.linspace(-1, view + 1, 6))
    batch = next(iter(batches.epoch(0)))
    users = shown_by(model, made, batch) @ model.user_tower.terms + model.user_tower.bias
    model._hidden = batch.view, batch.hidden
    rows = model._user_rows.without(batch.epoch, batch.users, batch.items)
    torch.testing.assert_close(model.embed_users(rows), users + model.domain_biases[batch.view])
    model._hidden = None
    codes, (offsets, items) = domains_of(made).codes, made.csr()
    history = torch.zeros(120, 60)
    history[np.repeat(np.arange(120), np.diff(offsets)), items] = 1
    of_users = history / history.sum(1, keepdim=True).clip(1) @ model.user_tower.terms + model.user_tower.bias
    vectors = torch.stack([model.item_towers[view].terms[at] + model.item_towers[view].bias for at, view in
                           enumerate(codes)])  # fmt: skip
    biases = torch.stack([model.domain_biases[view] for view in codes])
    expected = of_users.double() @ vectors.T.double() + (biases * vectors).double().sum(1)
    everyone, every = torch.arange(120).unsqueeze(1), torch.arange(60).unsqueeze(0)
    torch.testing.assert_close(model(everyone, every).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.item_vectors(), vectors)  # what items are alike by has no such part
    assert not ready(made, similarity="cosine")[0].domain_biases
    plain, _ = ready(made, domain_bias=False)
    assert plain.vectors_of_users.shape == (120, 6)


def test_vectors_of_domains_learn_from_steps_of_their_own_and_are_saved(made: Interactions, tmp_path: Path) -> None:
    single = models.create("multi-view", item_domains=("films",), **SMALL).fit(made, protocol="full", baselines=False)
    assert [bool(bias.detach().any()) for bias in single.domain_biases] == [False, True, False]
    single.save(tmp_path / "m")
    loaded = deeprec.load(tmp_path / "m")
    assert loaded.recommend([1, 2], 5).equals(single.recommend([1, 2], 5))
    more = single.fit_more(made, protocol="full", epochs=1)
    assert more.domain_biases[1].detach().any()


@pytest.mark.parametrize("negatives", ["row", "mixed"])
def test_a_user_of_whom_nothing_is_shown_has_no_gradient_by_cosines(negatives: str) -> None:
    # User 1 has the positive alone; user 3 met all of x, and user 2 all of y.
    frame = pl.DataFrame({"user_id": [1, 2, 2, 3, 3, 4], "item_id": list("abcabd"), "domain": list("xxyxxy")})
    lonely = Domains.from_frame(frame).joined()
    model, batches = ready(lonely, similarity="cosine", layers=(5,), last_activation="tanh", negatives=negatives,
                           num_negatives=2, mask_known=False)  # fmt: skip
    for batch in batches.epoch(0):
        model.loss(batch).backward()
    grads = [each.grad.to_dense() for each in model.parameters() if each.grad is not None]
    assert len(grads) > 8
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert torch.isfinite(model.item_vectors()).all()


def test_averaged_items_are_one_pair_of_a_user_and_domain(made: Interactions) -> None:
    model, batches = ready(made, averaged=True, negatives="sampled", num_negatives=8, mask_known=False)
    codes = domains_of(made).codes
    met = np.zeros((120, 60), dtype=np.float32)
    met[made.users, made.items] = 1
    assert batches.num_examples == sum((met[:, codes == view].any(axis=1)).sum() for view in range(3))
    batch = next(iter(batches.epoch(0)))
    assert batch.hidden.all()
    own = torch.from_numpy(met[batch.users] * (codes == batch.view))
    tower, items = model.user_tower, model.item_towers[batch.view]
    users = shown_by(model, made, batch) @ tower.terms + tower.bias
    positive = own / own.sum(1, keepdim=True) @ items.terms + items.bias
    logits = users @ (items.terms[batch.candidates] + items.bias).T - batch.log_q
    drawn = batch.log_q < APART
    assert 0 < drawn.sum() <= 8
    expected = F.cross_entropy(torch.cat([(users * positive).sum(1, keepdim=True), logits[:, drawn]], 1),
                               torch.zeros(len(batch), dtype=torch.int64))  # fmt: skip
    torch.testing.assert_close(model.loss(batch), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["top-k", "k-means", "lsh"])
def test_a_reduced_history_is_that_of_the_training_rows_by_numpy(made: Interactions, kind: str) -> None:
    model, _ = ready(made, history_reduction=kind, history_width=9, pooling="sum", user_domains=("books", "games"))
    films = domains_of(made).codes == 1
    met = Terms.of_interactions(made.take(~films[made.items]))
    x = Reduction.fit(met, kind, 9).apply(met)
    dense = torch.zeros(120, x.size)
    dense[np.repeat(np.arange(120), np.diff(x.offsets)), x.ids] = torch.from_numpy(x.weights)
    tower = model.user_tower
    expected = tower.bias + (torch.from_numpy(x.values) @ tower.numbers if kind == "lsh" else dense @ tower.terms)
    torch.testing.assert_close(model.user_rows(torch.arange(120))[0], F.pad(expected, (0, 1), value=1.0))
    offsets, items = (torch.from_numpy(each).long() for each in made.csr())
    torch.testing.assert_close(model.history_rows(offsets, items)[0], F.pad(expected, (0, 1), value=1.0))


def test_a_single_view_learns_of_its_domains_alone(made: Interactions) -> None:
    options = {"item_domains": ("films",), "user_domains": ("books",)}
    model = models.create("multi-view", **SMALL, **options).fit(made, protocol="full", baselines=False)
    codes = domains_of(made).codes
    nobody, films = (torch.from_numpy(np.flatnonzero(codes == at)[:n]) for at, n in ((0, 0), (1, 5)))
    of_films = model.history_rows(torch.tensor([0, 5]), films)[0]
    torch.testing.assert_close(of_films, model.history_rows(torch.tensor([0, 0]), nobody)[0])
    assert not model.item_vectors()[codes != 1].any()
    met = model.recommend([1, 2], 40, exclude_seen=False)["item_id"].to_list()
    assert set(codes[made.item_ids.encode(met)]) == {1}
    with pytest.raises(ValueError, match=r"one that was trained on, of \('films',\), got 'games'"):
        model.recommend([1], domain="games")


def test_somebody_of_one_domain_is_recommended_items_of_another(made: Interactions, tmp_path: Path) -> None:
    model = models.create("multi-view", **SMALL).fit(made, protocol="full", out=tmp_path / "run", baselines=False)
    names, codes = domains_of(made)
    of = dict(zip(made.item_ids.values.to_list(), codes, strict=True))
    met = np.zeros((120, 3), dtype=bool)
    met[made.users, codes[made.items]] = True
    single = int(np.flatnonzero(met.sum(axis=1) == 1)[0])
    user, other = made.user_ids.values[single], names[int(np.flatnonzero(~met[single])[0])]
    listed = model.recommend(user, 5, domain=other)
    assert {names[of[item]] for item in listed["item_id"]} == {other}
    few = listed["item_id"].to_list()[:2]
    assert model.recommend(user, 5, domain=other, allow=[*few, made.item_ids.values[0]])["item_id"].to_list() == few
    history = [item for item, code in of.items() if names[code] != other][:3]
    asked = model.recommend_for_history(history, 4, domain=other)
    assert {names[of[item]] for item in asked["item_id"]} == {other}
    assert len(model.recommend(user, 50, exclude_seen=False)) == 50  # of all domains together
    loaded = deeprec.load(tmp_path / "run")
    assert loaded.recommend(user, 5, domain=other).equals(listed)
    assert loaded.recommend_for_history(history, 4, domain=other).equals(asked)
    loaded.recommend_file(tmp_path / "recs.parquet", 2, users=[user], domain=other)
    assert pl.read_parquet(tmp_path / "recs.parquet")["item_id"].to_list() == few
    with pytest.raises(ValueError, match=r"recommend: domain must be one of \['books', 'films', 'games'\], got 'film'"):
        model.recommend(user, domain="film")


def test_users_new_to_a_domain_get_more_than_what_is_popular() -> None:
    made = data.synthetic(800, 150, 20_000, domains=3, seed=2)
    rule = protocol("cross-domain", domain="films", test_share=0.2)
    popular = models.create("popularity").fit(made, protocol=rule, baselines=False).evaluate()
    figures = models.create("multi-view", factors=32, epochs=15, lr=0.01).fit(made, protocol=rule,
                                                                              baselines=False).evaluate()  # fmt: skip
    assert figures["new_mrr@10"] > popular["new_mrr@10"] + 0.05
    assert figures["mrr@10"] > popular["mrr@10"] + 0.08


def test_items_with_text_train_and_later_ones_are_added_to_their_domain(made: Interactions, tmp_path: Path) -> None:
    schema = DataSchema(items=FeatureSchema((Text("title", tokens="words"),), label=None))
    model = models.create("multi-view", item_inputs=("features",), weighting="tf-idf", **SMALL)
    model.fit(made, schema=schema, protocol="full", baselines=False)
    title = made.item_features.filter(pl.col("domain") == "games")["title"][0]
    later = pl.DataFrame({"item_id": [900, 901], "title": [title, title], "domain": ["games", "films"]})
    with pytest.raises(ValueError, match="items must have a column 'domain', got item_id, title"):
        model.add_items(later.drop("domain"))
    with pytest.raises(ValueError, match=r"add_items: domain must be one of .* got 'songs'"):
        model.add_items(later.with_columns(domain=pl.Series(["games", "songs"])))
    model.add_items(later)
    codes = domains_of(made).codes
    twin = int(np.flatnonzero(made.item_features["title"].to_numpy() == title)[0])
    vectors = model.item_vectors()
    assert codes[twin] == 2
    torch.testing.assert_close(vectors[60], vectors[twin])
    assert (vectors[61] != vectors[60]).any()  # another tower reads it
    assert 901 in model.recommend(1, 40, domain="films", exclude_seen=False)["item_id"].to_list()
    model.save(tmp_path / "m")
    again = deeprec.load(tmp_path / "m").recommend(1, 40, domain="films", exclude_seen=False)
    assert again.equals(model.recommend(1, 40, domain="films", exclude_seen=False))


def test_one_domain_is_enough_and_data_may_name_none(made: Interactions) -> None:
    frame = made.to_frame().select("user_id", "item_id")
    plain = from_frame(frame)
    named = Domains.of({"books": plain}).joined("frame")
    lists = [
        models.create("multi-view", **SMALL).fit(each, protocol="full", baselines=False).recommend([1, 2], 4)
        for each in (plain, named)
    ]
    assert lists[0].equals(lists[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"user_domains": ("book",)}, r"domain must be one of .*, got 'book'; did you mean 'books'"),
        ({"item_domains": ("tapes",)}, r"domain must be one of \['books', 'films', 'games'\], got 'tapes'"),
        ({"hide_own": 1.5}, r"hide_own must be a share in \[0, 1\], got 1.5"),
        ({"history_reduction": "pca"}, "history_reduction"),
        ({"history_reduction": "lsh", "history_width": 0}, "history_width must be >= 1"),
        ({"averaged": True, "negatives": "row"}, "averaged items stand against sampled ones, got negatives='row'"),
        ({"gamma": 0.0}, "gamma must be > 0"),
    ],
)
def test_options_that_do_not_go_are_refused(made: Interactions, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ready(made, **options)


def test_a_domain_without_rows_and_domains_that_change_are_refused(made: Interactions) -> None:
    codes = domains_of(made).codes
    with pytest.raises(ValueError, match="every domain must have a training row, got none of 'games'"):
        ready(made.take(codes[made.items] != 2))
    ready(made.take(codes[made.items] != 2), item_domains=("books", "films"))
    model, _ = ready(made)
    other = replace(made, item_features=made.item_features.with_columns(domain=pl.lit("books")))
    with pytest.raises(ValueError, match=r"the domains must be \('books', 'films', 'games'\), got \('books',\)"):
        model.batches(other, 0)


def test_an_item_without_columns_is_scored_and_none_of_them_is_an_error(made: Interactions) -> None:
    schema = DataSchema(items=FeatureSchema((Text("title", tokens="words"),), label=None))
    title = pl.when(pl.col("item_id") == 1).then(None).otherwise(pl.col("title")).alias("title")
    some = replace(made, item_features=made.item_features.select("item_id", title, "domain"))
    model = models.create("multi-view", item_inputs=("features",), **SMALL)
    model.fit(some, schema=schema, protocol="full", baselines=False)
    assert torch.isfinite(model.item_vectors()).all()
    bare = replace(made, item_features=made.item_features.select("item_id", "domain"))
    with pytest.raises(ValueError, match="title"):
        models.create("multi-view", item_inputs=("features",), **SMALL).fit(bare, schema=schema, protocol="full")


def test_going_on_takes_the_domains_that_were_there(made: Interactions) -> None:
    model = models.create("multi-view", **SMALL).fit(made, protocol="full", baselines=False)
    renamed = replace(made, item_features=made.item_features.with_columns(domain=pl.lit("songs")))
    with pytest.raises(ValueError, match="there can be no new domain"):
        model.fit_more(renamed, protocol="full")
    model.fit_more(made, protocol="full", epochs=1)
