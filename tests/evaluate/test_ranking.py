"""Ranks against brute force, the tie rules, and the chance levels every protocol must show."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
import torch
from torch import nn

from deeprec.evaluate import evaluate, metrics, protocol, rank
from deeprec.evaluate import ranking as ranking_module
from deeprec.evaluate.ranking import candidate_ranks, full_ranks


def _brute_force_ranks(scores, positives, masked) -> list[int]:
    """Ranks of one user's positives, ascending: negatives win ties, positives line up behind one another."""
    negatives = [i for i in range(len(scores)) if i not in masked and i not in positives]
    best_first = sorted(positives, key=lambda i: -scores[i])
    return [n + sum(scores[j] >= scores[i] for j in negatives) for n, i in enumerate(best_first, start=1)]


@pytest.mark.parametrize("positives", [1, 4])
@pytest.mark.parametrize("levels", [5, 10_000])
def test_full_ranks_equal_brute_force_also_with_ties(make_split, table_scorer, positives, levels) -> None:
    split = make_split(positives=positives, seed=levels)
    table = np.random.default_rng(1).integers(0, levels, (30, 50))
    found = full_ranks(table_scorer(table), split.test, [split.train, split.validation])
    for row, user in enumerate(found.users):
        wanted = set(split.test.items[split.test.users == user].tolist())
        masked = {i for part in (split.train, split.validation) for i in part.items[part.users == user].tolist()}
        expected = _brute_force_ranks(table[user], wanted, masked)
        assert found.ranks[found.offsets[row] : found.offsets[row + 1]].tolist() == expected
        assert found.num_candidates[row] == 50 - len(masked)


def test_full_ranks_do_not_depend_on_the_block_size(make_split, table_scorer, monkeypatch) -> None:
    split = make_split(positives=3)
    scorer = table_scorer(np.random.default_rng(2).integers(0, 9, (30, 50)))
    whole = full_ranks(scorer, split.test, [split.train], top=6)
    monkeypatch.setattr(ranking_module, "_SCORES_PER_BLOCK", 50 * 4)
    blocks = full_ranks(scorer, split.test, [split.train], top=6)
    for name in ("users", "ranks", "offsets", "num_candidates", "top_items"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(blocks, name))


@pytest.mark.parametrize("ties", ["pessimistic", "authors"])
def test_candidate_ranks_do_not_depend_on_the_block_size(make_split, table_scorer, monkeypatch, ties) -> None:
    split = make_split()
    scorer = table_scorer(np.random.default_rng(3).integers(0, 4, (30, 50)))
    arguments = (scorer, split.test.users, split.test.items, split.test_negatives)
    whole = candidate_ranks(*arguments, ties=ties, top=5)
    monkeypatch.setattr(ranking_module, "_PAIRS_PER_BLOCK", 30)
    blocks = candidate_ranks(*arguments, ties=ties, top=5)
    np.testing.assert_array_equal(whole.ranks, blocks.ranks)
    np.testing.assert_array_equal(whole.top_items, blocks.top_items)


def _authors_rank(scores, negatives, positive) -> int:
    """The NCF authors' eval_one_rating, word for word, then the place of the positive in the full list."""
    items = list(negatives)
    items.append(positive)
    map_item_score = {}
    predictions = [scores[i] for i in items]
    for i in range(len(items)):
        map_item_score[items[i]] = predictions[i]
    items.pop()
    for k in range(1, len(map_item_score) + 1):
        ranklist = heapq.nlargest(k, map_item_score, key=map_item_score.get)
        if positive in ranklist:
            return k
    raise AssertionError("the positive is always listed")


@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_authors_rule_equals_a_reenactment_of_their_code(table_scorer, levels) -> None:
    generator = np.random.default_rng(levels)
    users = np.arange(60)
    table = generator.integers(0, levels, (60, 12))
    positives = generator.integers(0, 12, 60)
    negatives = generator.integers(0, 12, (60, 9))  # with repeats, and with the positive among them
    found = candidate_ranks(table_scorer(table), users, positives, negatives, ties="authors")
    expected = [_authors_rank(table[u], negatives[u].tolist(), int(positives[u])) for u in users]
    assert found.ranks.tolist() == expected


def test_authors_rule_differs_only_where_the_positive_is_among_its_negatives(table_scorer) -> None:
    constant = table_scorer(np.zeros((2, 5)))
    negatives = np.array([[1, 2, 3], [0, 2, 3]])
    arguments = (constant, np.arange(2), np.array([0, 0]), negatives)
    assert candidate_ranks(*arguments, ties="authors").ranks.tolist() == [4, 1]
    assert candidate_ranks(*arguments, ties="pessimistic").ranks.tolist() == [4, 3]


def test_repeated_candidates_count_once(table_scorer) -> None:
    scorer = table_scorer([[5.0, 9.0, 7.0, 1.0]])
    found = candidate_ranks(scorer, np.array([0]), np.array([0]), np.array([[1, 1, 2, 0, 3]]), top=6)
    assert found.ranks.tolist() == [3]
    assert found.num_candidates.tolist() == [4]
    assert found.top_items.tolist() == [[1, 2, 0, 3, -1, -1]]


class _Random:
    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)

    def score_pairs(self, users, items):
        return torch.rand(users.numel(), generator=self.generator)


def test_random_scores_reach_chance_level_with_99_negatives() -> None:
    users = np.arange(60_000)
    negatives = np.broadcast_to(np.arange(1, 100), (users.size, 99))
    found = candidate_ranks(_Random(), users, np.zeros(users.size, dtype=int), negatives)
    hit = found.ranks <= 10
    gain = np.where(hit, math.log(2) / np.log(found.ranks + 1.0), 0.0)
    assert hit.mean() == pytest.approx(0.1, abs=0.005)  # four standard errors
    assert gain.mean() == pytest.approx(0.0454, abs=0.003)


@pytest.mark.parametrize(
    ("negatives", "metric", "cutoff", "want"),
    [(100, "hr", 10, 0.0990), (9, "precision", 1, 0.1), (9, "mrr", 10, 0.2929)],
)
def test_random_scores_reach_the_chance_levels_of_other_protocols(
    negatives: int, metric: str, cutoff: int, want: float
) -> None:
    users = np.arange(60_000)
    lists = np.broadcast_to(np.arange(1, negatives + 1), (users.size, negatives))
    found = candidate_ranks(_Random(), users, np.zeros(users.size, dtype=int), lists)
    assert metrics.RANK_METRICS[metric](found.ranks, cutoff).mean() == pytest.approx(want, abs=0.005)


@pytest.mark.parametrize("candidates", [8, "all"])
@pytest.mark.parametrize("value", [0.0, float("-inf"), float("inf")])
def test_constant_scorer_gets_zero_under_the_pessimistic_rule(make_split, table_scorer, candidates, value) -> None:
    split = make_split(negatives=20) if candidates == "all" else make_split(negatives=8)
    cutoff = 8 if candidates == 8 else 10
    rule = protocol(
        "full", candidates=candidates, metrics=("hr", "recall", "ndcg", "mrr", "map", "auc"), cutoffs=cutoff
    )
    figures = evaluate(table_scorer(np.full((30, 50), value)), split, rule)
    assert figures == dict.fromkeys(figures, 0.0)


def test_perfect_scorer_gets_one(make_split, table_scorer) -> None:
    split = make_split(positives=3)
    table = np.zeros((30, 50))
    table[split.test.users, split.test.items] = 1.0
    figures = evaluate(table_scorer(table), split, protocol("full", metrics=("hr", "recall", "ndcg", "map", "auc")))
    assert figures == dict.fromkeys(figures, 1.0)


def test_training_items_are_masked_and_validation_items_only_in_the_test(make_split, table_scorer) -> None:
    split = make_split()
    table = np.zeros((30, 50))
    table[split.train.users, split.train.items] = 3.0
    table[split.validation.users, split.validation.items] = 2.0
    table[split.test.users, split.test.items] = 1.0
    rule = protocol("full", metrics=("hr",), cutoffs=(1, 2))
    assert evaluate(table_scorer(table), split, rule, "test") == {"hr@1": 1.0, "hr@2": 1.0}
    assert evaluate(table_scorer(table), split, rule, "validation") == {"hr@1": 1.0, "hr@2": 1.0}
    unmasked = protocol("full", metrics=("hr",), cutoffs=(1, 6, 7), mask=())
    assert evaluate(table_scorer(table), split, unmasked, "test") == {"hr@1": 0.0, "hr@6": 0.0, "hr@7": 1.0}


def test_lists_hold_unmasked_items_by_score_then_index(make_split, table_scorer) -> None:
    split = make_split(num_users=4, num_items=12, train=3, negatives=5)
    table = np.array([[3, 1, 2, 2, 2, 3, 0, 0, 1, 1, 2, 3]] * 4)
    found = full_ranks(table_scorer(table), split.test, [split.train], top=12)
    for user, listed in enumerate(found.top_items.tolist()):
        masked = set(split.train.items[split.train.users == user].tolist())
        expected = [i for i in sorted(range(12), key=lambda i: (-table[user, i], i)) if i not in masked]
        assert listed == expected + [-1] * 3


def test_chosen_users_only_are_evaluated(make_split, table_scorer) -> None:
    split = make_split()
    scorer = table_scorer(np.random.default_rng(4).normal(size=(30, 50)))
    chosen = np.array([3, 17])
    for rule in (protocol("full"), protocol("ncf", candidates=8)):
        whole, some = rank(scorer, split, rule), rank(scorer, split, rule, users=chosen)
        assert some.users.tolist() == [3, 17]
        assert some.ranks.tolist() == [whole.ranks[whole.users == user][0] for user in chosen]


@pytest.mark.parametrize("name", ["full", "ncf"])
def test_nan_score_is_refused_and_named(make_split, table_scorer, name) -> None:
    split = make_split()
    table = np.zeros((30, 50))
    table[7, split.test.items[split.test.users == 7]] = np.nan
    rule = protocol(name) if name == "full" else protocol(name, candidates=8)
    with pytest.raises(ValueError, match="got NaN for internal user 7, item"):
        evaluate(table_scorer(table), split, rule)


def test_wrong_score_shape_is_refused(make_split, table_scorer) -> None:
    with pytest.raises(ValueError, match=r"score_items must return \[30, 50\]"):
        evaluate(table_scorer(np.zeros((30, 49))), make_split(), protocol("full"))


def test_shared_score_memory_is_left_alone(make_split) -> None:
    popularity = torch.arange(50.0)

    class Popular:
        def score_items(self, users):
            return popularity.expand(users.numel(), 50)

    evaluate(Popular(), make_split(), protocol("full"))
    assert torch.equal(popularity, torch.arange(50.0))


def test_module_is_scored_in_eval_mode_and_set_back(make_split) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Dropout().eval()

        def score_items(self, users):
            assert not self.training
            assert not torch.is_grad_enabled()
            return torch.zeros(users.numel(), 50)

    model = Model().train()
    model.frozen.eval()
    evaluate(model, make_split(), protocol("full"))
    assert model.training
    assert not model.frozen.training


def test_empty_part_and_missing_negatives_are_clear_errors(make_split, interactions, table_scorer) -> None:
    split = make_split()
    scorer = table_scorer(np.zeros((30, 50)))
    with pytest.raises(ValueError, match="asks for 99 negatives"):
        evaluate(scorer, split, protocol("ncf"))
    split.test_negatives = None
    with pytest.raises(ValueError, match="test part has no negatives"):
        evaluate(scorer, split, protocol("ncf"))
    split.test = interactions([], 30, 50)
    with pytest.raises(ValueError, match="test part must have a user"):
        evaluate(scorer, split, protocol("full"))
    with pytest.raises(ValueError, match="part must be"):
        evaluate(scorer, split, protocol("full"), "train")


def test_progress_ends_at_the_total(make_split, table_scorer) -> None:
    seen = []
    scorer = table_scorer(np.zeros((30, 50)))
    for rule in (protocol("full"), protocol("ncf", candidates=8)):
        evaluate(scorer, make_split(), rule, progress=lambda done, total: seen.append((done, total)))
        assert seen[-1] == (30, 30)


@pytest.mark.parametrize("levels", [4, 10_000])
@pytest.mark.parametrize("top", [0, 3, 70, 200])
@pytest.mark.parametrize("only_its_items", [False, True])
def test_compiled_ranks_are_those_of_torch(make_split, table_scorer, monkeypatch, levels, top, only_its_items) -> None:
    if ranking_module._rank_rows is None:
        pytest.skip("needs deeprec._host, which is built with a C++ compiler")
    split = make_split(num_users=40, num_items=130, positives=3)
    draw = np.random.default_rng(levels)
    scores = draw.integers(0, levels, (40, 130)).astype(np.float32)
    scores[draw.random(scores.shape) < 0.05] = -np.inf

    def ranked():
        return full_ranks(
            table_scorer(scores), split.test, [split.train, split.validation], only_its_items=only_its_items, top=top
        )

    compiled = ranked()
    monkeypatch.setattr(ranking_module, "_rank_rows", None)
    plain = ranked()
    for name in ("users", "ranks", "offsets", "num_candidates"):
        np.testing.assert_array_equal(getattr(compiled, name), getattr(plain, name), err_msg=name)
    np.testing.assert_array_equal(compiled.top_items, plain.top_items) if top else None


def test_lists_outside_the_catalogue_are_refused_by_the_compiled_ranks() -> None:
    if ranking_module._rank_rows is None:
        pytest.skip("needs deeprec._host, which is built with a C++ compiler")
    scores, users = np.zeros((1, 4), dtype=np.float32), np.zeros(1, dtype=np.int64)
    offsets, items = np.array([0, 1]), np.array([2], dtype=np.int32)
    for wrong in ((offsets, np.array([4], dtype=np.int32)), (np.array([0, 3]), items), (np.array([0]), items)):
        with pytest.raises(ValueError, match="must"):
            ranking_module._rank_rows(scores, users, wrong, [], 0)
        with pytest.raises(ValueError, match="must"):
            ranking_module._rank_rows(scores, users, (offsets, items), [wrong], 0)
