"""Every model trains, is measured and is asked on a device that is not the CPU, and waits for it only where listed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deeprec import models

ROOT = Path(__file__).resolve().parents[2]

# Who may look at what a device holds, which waits for it, and why. All else must be queued.
LOOKS = {
    # How many rows of a table a batch touches is known when its ids are sorted: row gradients have that size.
    "deeprec.embedding_plan": "distinct rows of the ids",
    "deeprec.embedding_bags_plan": "distinct rows of the ids",
    "deeprec.session_columns": "distinct items of the step",
    "deeprec.models.gru4rec._backward_by_hand": "how many of these are candidates, and not an input alone",
    "deeprec.embedding_bags_grad": "distinct rows of each table",
    "deeprec.embedding_fm_grad": "distinct rows of each table",
    "deeprec.kernels.embedding_bag.plan.rows_by_table": "where the rows of each table begin, one list",
    "deeprec.nn._bag_inputs._bounds": "where the ids of each bag begin, for rows that Adam has yet to catch up with",
    # L-BFGS chooses its steps by the losses it sees.
    "deeprec.train.loop.search_line": "L-BFGS",
    "deeprec.train.loop.objective": "L-BFGS",
    "deeprec.models.autorec.<genexpr>": "L-BFGS: the penalty",
    # Once a block of a million draws, never in a step: a kernel cannot raise.
    "deeprec.kernels.sample_negatives._check_lists": "the lists, once",
    "deeprec.train.loop.epoch": "the loss, once in 64 steps and at the end of an epoch",
    "deeprec.models.dropoutnet._made_factors": "the factors, of which a user's best items are drawn, once an epoch",
    # After training, once: rows without ratings.
    "deeprec.models._autoencoder._finish_codes": "is a row without ratings",
    # What comes back to be shown.
    "deeprec.serve.recommend.<genexpr>": "items and scores",
    "deeprec.serve.recommend.score": "scores",
    "deeprec.evaluate.tasks._logits": "predictions, one transfer for all rows",
    "deeprec.evaluate.ranking._together": "ranks, candidates and lists, a transfer each for all users",
    "deeprec.evaluate.ranking._first_true": "whether a score was NaN",
    "deeprec.evaluate.evaluator.rating_figures": "predictions, one transfer",
    # Ratings that a caller gives, once a call.
    "deeprec.models._autoencoder._check_range": "ratings outside the range",
    # Lists of several lengths, once a block of users: histories, and seen items where no kernel takes them as they are.
    "deeprec.nn.scoring._taken": "lengths of the lists",
    "deeprec.nn.scoring.rows_of": "lengths of the lists",
    "deeprec.models.history.pair_scores": "distinct users of the pairs",
    "deeprec.models._sequence_model.forward": "distinct users of the pairs",
    "deeprec.models.acf._refresh": "where the items of each user begin, once after the training",
    "deeprec.models._levels._encode_new": "how many rows of the table the ratings of a block of new users are",
    # Neighbours are searched on the CPU: the items of those who ask, once a block, and the past sessions, once.
    "deeprec.models.session_knn.history_rows": "items of the present sessions",
    "deeprec.models.session_knn.user_rows": "who asks",
    "deeprec.models.session_knn.<genexpr>": "the past sessions, once",
}

# Who writes floats by an index, which would leave open what stays where it repeats, and why it does not.
WRITES = {
    "deeprec.kernels.sampled_linear_loss.backward": "the rows of a plan, each once",
    "deeprec.evaluate.ranking._rank_block": "a user's positives, each once",
    "deeprec.models.gru4rec.backward": "the lanes of a step, each once",
    "deeprec.models.gru4rec.history_rows": "the histories of a block, each once",
    "deeprec.models._adversarial._write": "the rows of a sparse gradient, each once",
    "deeprec.models.slim.item_vectors": "the neighbours of an item, each once",
    "deeprec.nn.target_attention.forward": "a place for each entry, but for those that are cut off again",
}
# Who sums floats by index_put_, as the gradient of x[ids] does: in order on a GPU, but not on a CPU of several threads,
# where these call another operator.
PUTS = {
    "deeprec.kernels.sums.add_rows": "index_add_",
    "deeprec.nn.attention.backward": "the gradient of sums.take, index_select there",
}
PUTS_OF_HISTORIES = PUTS | {
    "deeprec.kernels.sums.sum_rows": "scatter_add",
    "elsewhere": "the gradient of sums.take, which autograd calls: index_select there",
}

# Of models whose steps sum so.
PUTS_OF = dict.fromkeys(("acf", "caser", "dqn", "irgan", "reinforce"), PUTS_OF_HISTORIES)
LISTS_OF = {"hybrid": 2}  # models that are asked, of which each may wait for the lists of its users

# Operator calls and looks of a training step, of the optimizer that has most, but for L-BFGS. A step that takes more is
# a regression on a GPU, where each call costs; one that takes far less should lower its budget. These are measured; a
# model without a line is held to what no step of its kind should take.
BUDGET = {
    "acf": (599, 4),
    "afm": (1141, 32),
    "als": (14, 0),
    "amf": (723, 9),
    "amr": (787, 9),
    "autorec": (221, 5),
    "bert4rec": (1452, 0),
    "caser": (628, 5),
    "cdae": (250, 6),
    "cdl": (25, 0),
    "cf-nade": (316, 0),
    "cfn": (225, 5),
    "convmf": (70, 0),
    "convncf": (904, 3),
    "cvae": (25, 0),
    "dcn-v2": (857, 15),
    "deep-music": (14, 0),
    "deepconn": (402, 0),
    "deepfm": (1085, 30),
    "dnn": (641, 15),
    "dqn": (2115, 0),  # with those of a recurrent layer at each place, which are one call on a GPU
    "dropoutnet": (457, 0),
    "dssm": (257, 4),
    "fm": (831, 30),
    "gmf": (86, 2),
    "gru4rec": (181, 2),
    "ips-mf": (274, 0),
    "irgan": (708, 4),
    "lr": (423, 17),
    "mf": (170, 2),
    "mlp": (122, 2),
    "neumf": (166, 2),
    "nfm": (978, 32),
    "rbm": (247, 0),
    "reinforce": (1691, 0),  # as dqn
    "sasrec": (1342, 0),
    "svd++": (528, 7),
    "vbpr": (417, 3),
    "wide-deep": (989, 29),
}
HEADROOM = 1.1
BUDGET_OF_KIND = {"interactions": (400, 6), "log": (1200, 32)}  # by what the model reads
TRAINED = [name for name in models.recommenders() if models.model_class(name).trains_by_gradient]
TRAINED_CLICKS = [name for name in models.click_models() if models.model_class(name).trains_by_gradient]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    worker = Path(__file__).with_name("shadow_worker.py")
    run = subprocess.run([sys.executable, str(worker)], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-4000:]
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def require_queued(where: str, work: dict[str, Any], known_puts: dict[str, str] = PUTS) -> None:
    """Without a wait, and with the same bits in every run."""
    assert "error" not in work, f"{where}: {work['error']}"
    assert not work["sums"], f"{where} sums in no fixed order: {work['sums']}; use deeprec.kernels.sums"
    unlisted = {who: times for who, times in work["writes"].items() if who not in WRITES}
    assert not unlisted, f"{where} writes by an index that may repeat: {unlisted}"
    unlisted = {who: times for who, times in work["puts"].items() if who not in known_puts}
    assert not unlisted, f"{where} sums by index_put_, without an order on several threads of a CPU: {unlisted}"
    unlisted = {who: times for who, times in work["reads"].items() if who not in LOOKS}
    assert not unlisted, f"{where} waits for the device: {unlisted}"


def require_budget(name: str, measured: dict[str, Any]) -> None:
    steps = [work for optimizer, work in measured.items() if optimizer != "lbfgs"]
    calls, looks = max(work["calls"] for work in steps), max(sum(work["reads"].values()) for work in steps)
    most, most_looks = BUDGET.get(name, BUDGET_OF_KIND[models.model_class(name).reads])
    assert calls <= most * HEADROOM, f"{name}: {calls} operator calls a step, the budget is {most}"
    assert name not in BUDGET or calls >= most / 1.25, f"{name}: {calls} operator calls a step, lower its {most}"
    assert looks <= most_looks, f"{name}: a step waits for the device {looks} times, the budget is {most_looks}"


def test_faults_are_noticed(found: dict[str, Any]) -> None:
    assert found["faults"]["mixed"]["error"].startswith("FakeTensorDeviceMismatchError")
    assert found["faults"]["look"]["reads"] == {"elsewhere": 1}
    assert found["faults"]["size"]["reads"] == {"deeprec.embedding_plan": 2}
    assert found["faults"]["sum"]["sums"] == {"aten.index_add.default in elsewhere": 1}
    assert found["faults"]["put"]["puts"] == {"elsewhere": 1}
    assert found["faults"]["write"]["writes"] == {"elsewhere": 1}


def test_epoch_of_sequences(found: dict[str, Any]) -> None:
    for what, work in found["sequences"].items():
        require_queued(what, work)
    few, many = found["sequences"]["few batches"], found["sequences"]["many batches"]
    assert few["calls"] < many["calls"]
    assert few["reads"] == many["reads"]  # once an epoch or a block, not in a step


@pytest.mark.parametrize("name", models.names())
def test_training_step_of_every_optimizer(found: dict[str, Any], name: str) -> None:
    steps = found[name]["steps"]
    kind = models.model_class(name)
    expected = kind.config_class.optimizers if getattr(kind, "trains_by_gradient", True) else ()
    assert set(expected) <= set(steps)
    for optimizer, work in steps.items():
        require_queued(f"{name} with {optimizer}", work, PUTS_OF.get(name, PUTS))


@pytest.mark.parametrize("name", models.names())
def test_evaluation_recommendation_and_prediction(found: dict[str, Any], name: str) -> None:
    for what, work in found[name]["serving"].items():
        require_queued(f"{name}: {what}", work, PUTS_OF.get(name, PUTS))


@pytest.mark.parametrize(
    "name", [name for name in models.click_models() if models.model_class(name).trains_by_gradient]
)
def test_histories_in_click_models(found: dict[str, Any], name: str) -> None:
    for what, work in found[name]["histories"].items():
        require_queued(f"{name}, history {what}", work, PUTS_OF_HISTORIES)


@pytest.mark.parametrize("name", TRAINED)
def test_epoch_with_the_models_own_sampler(found: dict[str, Any], name: str) -> None:
    require_queued(name, found[name]["epoch"], PUTS_OF.get(name, PUTS))
    assert found[name]["epoch"]["reads"]["deeprec.train.loop.epoch"] == 1


@pytest.mark.parametrize("name", TRAINED)
def test_checkpoint_of_one_device_goes_on_on_another(found: dict[str, Any], name: str) -> None:
    result = found[name]["checkpoint"]
    assert result["file"] == ["cpu"]
    assert result["model"] == "shadow"
    assert set(result["state"]) <= {"shadow", "cpu"}  # torch keeps its counts of steps on the CPU


@pytest.mark.parametrize("name", [name for name in models.names() if models.model_class(name).trains_by_gradient])
def test_step_keeps_to_its_budget(found: dict[str, Any], name: str) -> None:
    require_budget(name, found[name]["steps"])


@pytest.mark.parametrize("name", models.recommenders())
def test_top_k_waits_at_most_once_for_lists_of_several_lengths(found: dict[str, Any], name: str) -> None:
    serving = found[name]["serving"]
    own = serving["topk unmasked"]["reads"]  # a model whose users are lists of items waits for these
    assert sum(own.values()) <= LISTS_OF.get(name, 1)
    for what, waits in (("topk", not found[name]["has_kernel"]), ("allowed by user", True)):
        assert sum(serving[what]["reads"].values()) == sum(own.values()) + waits, what
