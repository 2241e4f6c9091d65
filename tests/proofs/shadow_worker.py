"""Runs every model on a device that exists in name only, and prints what it did there as JSON; see test_any_device.py.

With arguments NAME=MODULE:CLASS it registers these models, and runs them alone.

"shadow" is a device of its own whose tensors have a shape and a type but no memory (FakeTensorMode). What meets a
tensor of the CPU there raises; what asks for a value is noted with the function that asks, and gets a made-up one. Work
on the CPU is done as ever. A process of its own, because torch takes such a device for good.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch._library.fake_impl import FakeImplCtx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from unordered import is_sum_of_index_put, is_unordered_sum, is_unordered_write

import deeprec
from deeprec import models, serve
from deeprec.batches import SequenceBatches
from deeprec.config import OPTIMIZERS, taken_options
from deeprec.contract import NEW_USERS, RATES, SIMILAR_ITEMS, Queries, Schema, Seen
from deeprec.data import from_frame
from deeprec.data.columns.inputs import BagField, Bags, Encoded, Field, Inputs, SequenceField
from deeprec.device import device_of
from deeprec.evaluate import evaluate, protocol
from deeprec.evaluate.tasks import logits_of_rows
from deeprec.kernels.embedding import embedding_plan
from deeprec.models import fold_in
from deeprec.models.click import ClickBatch
from deeprec.nn.scoring import BlockScorer
from deeprec.registry import register
from deeprec.train.checkpoint import Checkpoint, copy_state, read_checkpoint, write_checkpoint
from deeprec.train.loop import search_line, train_epoch
from deeprec.train.optimizers import Optimizers

_setup_privateuseone_for_python_backend("shadow")
SHADOW = torch.device("shadow", 0)
ROOT = Path(deeprec.__path__[0]).parent
aten = torch.ops.aten
# In place, and without a shape function in torch: nothing to compute but that all is on the device.
WITHOUT_SHAPES = (aten._fused_sgd_.default, aten._fused_adagrad_.default)

# The shapes of the cell of a GRU, which torch does not say.
_SHAPES = torch.library.Library("aten", "IMPL", "Meta")


def _gru_cell(input_gates: Any, hidden_gates: Any, hx: Any, input_bias: Any = None, hidden_bias: Any = None) -> Any:
    return torch.empty_like(hx), hx.new_empty(len(hx), 5 * hx.shape[1])


def _gru_cell_backward(grad: Any, workspace: Any, has_bias: bool) -> Any:
    width = 3 * grad.shape[1]
    gates, biases = ([grad.new_empty(*shape) for _ in range(2)] for shape in ((len(grad), width), (width,)))
    return (*gates, torch.empty_like(grad), *(biases if has_bias else (None, None)))


_SHAPES.impl("_thnn_fused_gru_cell", _gru_cell)
_SHAPES.impl("_thnn_fused_gru_cell_backward", _gru_cell_backward)


class Shadow(TorchDispatchMode):
    """Counts the operator calls on the device, and looks at what it holds, sums and writes by who takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.tables = 0
        self.reads: Counter[str] = Counter()
        self.sums: Counter[str] = Counter()
        self.puts: Counter[str] = Counter()
        self.writes: Counter[str] = Counter()
        self.fakes = FakeTensorMode(allow_non_fake_inputs=True)

    def __enter__(self) -> Any:
        self.fakes.__enter__()
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        self.fakes.__exit__(*args)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat = list(tree_iter((args, kwargs)))
        is_there = any(isinstance(x, FakeTensor) for x in flat)
        if not is_there and not any(isinstance(x, torch.device) and x.type == "shadow" for x in flat):
            with _disable_current_modes():
                return func(*args, **kwargs)
        self.calls += 1
        if is_unordered_sum(func, args, kwargs):
            self.sums[f"{func} in {innermost()}"] += 1
        elif is_sum_of_index_put(func, args, kwargs):
            self.puts[innermost()] += 1
        elif is_unordered_write(func, args, kwargs):
            self.writes[innermost()] += 1
        if func is torch.ops.deeprec.embedding_bags_plan.default:
            self.tables = len(args[2])
        if (result := self._transfer(func, args, kwargs, is_there)) is not None:
            return result
        if (result := self._look(func, args)) is not None:
            return result
        tensors = [x for x in flat if isinstance(x, torch.Tensor)]
        if func in WITHOUT_SHAPES:
            if {x.device for x in tensors} != {SHADOW}:
                raise RuntimeError(f"{func} on {[x.device for x in tensors]}")
            return None

        def as_fake(x: Any) -> Any:
            return x if isinstance(x, FakeTensor) else self.fakes.from_tensor(x)

        args, kwargs = tree_map_only(torch.Tensor, as_fake, (args, kwargs))
        return func(*args, **kwargs)

    def _transfer(self, func: Any, args: Any, kwargs: Any, is_there: bool) -> Any:
        """Copies between the devices; one to the CPU is a look."""
        if func is aten._to_copy.default:
            source = args[0]
            device, dtype = kwargs.get("device") or source.device, kwargs.get("dtype") or source.dtype
            if device.type == "cpu":
                self.note()
                with _disable_current_modes():
                    return torch.ones(tuple(source.shape), dtype=dtype)
            return None if is_there else torch.empty(source.shape, dtype=dtype, device=SHADOW)
        if func is aten.copy_.default and isinstance(args[0], FakeTensor) != isinstance(args[1], FakeTensor):
            if isinstance(args[1], FakeTensor):
                self.note()
            return args[0]
        return None

    def _look(self, func: Any, args: Any) -> Any:
        """What waits for the device; made-up values: nothing is true, nothing is found, entry i of a list is 3 i."""
        if func is aten._local_scalar_dense.default:
            self.note()
            kind = args[0].dtype
            return False if kind == torch.bool else 0.5 if kind.is_floating_point else 3 * args[0].storage_offset()
        if func is aten.nonzero.default:
            self.note()
            return torch.zeros(0, args[0].dim(), dtype=torch.int64, device=SHADOW)
        if func is aten._unique2.default:
            self.note()
            return tuple(torch.zeros(n, dtype=torch.int64, device=SHADOW) for n in (3, args[0].numel(), 3))
        if func is aten.index.Tensor:
            masks = [x for x in args[1] if x is not None and x.dtype == torch.bool]
            if masks:
                self.note()
                rest = args[0].shape[sum(mask.dim() for mask in masks) :]
                return torch.empty((3, *rest), dtype=args[0].dtype, device=SHADOW)
        return None

    def note(self, what: str = "") -> None:
        """One look, by an operator of ours or by the innermost function of deeprec."""
        self.reads[what or innermost()] += 1


@functools.cache
def module_of(file: str) -> str:
    """Of a file of deeprec, else nothing."""
    path = Path(file)
    if not (path.is_relative_to(ROOT / "deeprec") or path.is_relative_to(ROOT / "kernels")):
        return ""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def innermost() -> str:
    """The innermost function of deeprec that is at work."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        if module := module_of(frame.f_code.co_filename):
            return f"{module}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


class OnShadow(TorchFunctionMode):
    """`with torch.device("shadow")`, and torch.tensor, which such a device does not make by itself."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor:
            return func(*args, **kwargs).to(SHADOW)
        if func in _device_constructors() and kwargs.get("device") is None:
            kwargs["device"] = SHADOW
        return func(*args, **kwargs)


_mode: Shadow
fold_in._STEPS = 3  # of fitting a new user's row; the hundredth asks for what the third does


def _new_dynamic_size(context: Any, **_: Any) -> int:
    """A size that depends on values, such as how many rows are distinct: the operator is waited for."""
    name = str(context._op).partition(".default")[0]
    _mode.note(name)
    return 3 * _mode.tables if name.endswith("bags_plan") else 3  # distinct rows: three of each table, see `_look`


FakeImplCtx.new_dynamic_size = _new_dynamic_size  # type: ignore[method-assign, assignment]


def measured(work: Callable[[], Any]) -> dict[str, Any]:
    """What a piece of work costs on the device."""
    _mode.calls = 0
    notes = {"reads": _mode.reads, "sums": _mode.sums, "puts": _mode.puts, "writes": _mode.writes}
    for counter in notes.values():
        counter.clear()
    try:
        work()
    except Exception as error:  # each is a finding of the test
        return {"error": f"{type(error).__name__}: {str(error)[:500]}"}
    return {"calls": _mode.calls, **{what: dict(counter) for what, counter in notes.items()}}


def interactions() -> Any:
    """Forty users, 150 items."""
    draw, count = np.random.default_rng(0), 600
    columns = {
        "user_id": draw.integers(0, 40, count),
        "item_id": draw.integers(0, 150, count),
        "rating": draw.integers(1, 6, count).astype(float),
        "timestamp": np.arange(count),
    }
    return from_frame(pl.DataFrame(columns).unique(["user_id", "item_id"], maintain_order=True))


DATA = interactions()
INPUTS = Inputs(
    (Field("user", 7), Field("user x item", 13, is_cross=True), Field("item", 11)),
    ("price", "age"),
    (BagField("genres", 6), BagField("tags", 9, "mean", is_weighted=True)),
)

HISTORIES = Inputs(
    INPUTS.fields,
    INPUTS.numerics,
    INPUTS.bags,
    (SequenceField("seen", 11, 3, "item"), SequenceField("users", 7, 3, "user", "seen")),
)


def recommender(name: str, optimizer: str = "") -> Any:
    """A model on the device, with the full batch where the optimizer asks for it."""
    options: dict[str, Any] = {"optimizer": optimizer} if optimizer else {}
    kind = models.config_class(name)
    if hasattr(kind, "rating_range"):
        options["rating_range"] = (1.0, 5.0)
    if optimizer in OPTIMIZERS and kind.batch_size == 0:
        options["batch_size"] = 8
    with OnShadow():
        return models.create(name, schema=Schema(DATA.num_users, DATA.num_items), **options)


def made(name: str, optimizer: str = "", inputs: Inputs = INPUTS, **options: Any) -> tuple[Any, Any]:
    """A model on the device, and a batch of its own sampler."""
    if name in models.recommenders():
        model = recommender(name, optimizer)
        return model, next(iter(model.batches(DATA, 0).epoch(0)))
    chosen = {"optimizer": optimizer} if optimizer else {}
    with OnShadow():
        model = models.create(name, inputs=inputs, **chosen, **options)
    return model, ClickBatch.of(rows(inputs)).to(SHADOW)


def training_step(name: str, optimizer: str, **options: Any) -> dict[str, Any]:
    """The second step of a new model, by when states are there."""
    model, batch = made(name, optimizer, **options)
    chosen = Optimizers(model)
    model.train()

    def step() -> None:
        chosen.clear()
        search = chosen.line_search
        for turn in model.turns():
            if search is not None:
                search_line(chosen, turn, batch, model.penalty)
                return
            turn.backward(batch)
            chosen.step(turn.groups)
            chosen.clear()

    first = measured(step)
    return first if "error" in first else measured(step)


def checkpoint(name: str) -> dict[str, Any]:
    """A checkpoint of the device, read back on the CPU and put into a model and an optimizer of the device."""
    (model, batch), (again, _) = made(name), made(name)
    first, second = Optimizers(model), Optimizers(again)
    model.backward(batch)
    first.step()
    with tempfile.TemporaryDirectory() as directory:
        state = copy_state(model)
        write_checkpoint(Path(directory), Checkpoint({}, {}, state, {}, state, first.state_dict()))
        found = read_checkpoint(Path(directory))
    assert found is not None
    devices = {value.device.type for value in found.model.values()}
    again.load_state_dict(found.model)
    second.load_state_dict(found.optimizer)
    states = [state for one in second.each for state in one.state.values()]
    there = {x.device.type for state in states for x in state.values() if isinstance(x, torch.Tensor)}
    again.backward(batch)
    second.step()
    return {"file": sorted(devices), "state": sorted(there), "model": device_of(again).type}


def serving(name: str) -> dict[str, Any]:
    """Evaluation, recommendation, top-k."""
    model = recommender(name)
    if model.trains_by_gradient:
        model.batches(DATA, 0)
    else:
        model.fit_directly(DATA)
    model.user_ids, model.item_ids, model.seen = DATA.user_ids, DATA.item_ids, Seen(*DATA.csr())
    model.eval()
    users, items = DATA.user_ids.values.to_list(), DATA.item_ids.values.to_list()
    works: dict[str, Callable[[], Any]] = {
        "recommend": lambda: serve.recommend(model, users[:3], 5),
        "score": lambda: serve.score(model, [(users[0], items[1]), (users[2], items[0])]),
        "topk": lambda: model.topk(torch.arange(4, device=SHADOW), 5, model.seen),
        "topk unmasked": lambda: model.topk(torch.arange(4, device=SHADOW), 5, None),
        "recommend allowed": lambda: serve.recommend(model, users[:3], 5, allow=items[:9], deny=items[5:7]),
        "recommend but denied": lambda: serve.recommend(model, users[:3], 5, deny=items[:2]),
        "recommend from the rest": lambda: serve.recommend(model, users[:3], 5, exclude_seen=False, deny=items[:70]),
        "allowed by user": lambda: model.topk(
            torch.arange(4, device=SHADOW), 5, model.seen, allow=(np.arange(5) * 3, np.arange(12))
        ),
    }
    if NEW_USERS in model.capabilities:
        works["history"] = lambda: serve.recommend_for_history(model, items[:2], 5)
    if SIMILAR_ITEMS in model.capabilities:
        works["similar"] = lambda: serve.similar_items(model, items[:2], 3)
    more = {"rating": RATES in model.capabilities, "next-item": model.reads_history}
    rules = ["full", "ncf", *(rule for rule, holds in more.items() if holds)]
    for rule in rules:
        chosen = protocol(rule, **({"metrics": ("ndcg", "coverage")} if rule == "full" else {})).resolve(DATA)
        split = chosen.split(DATA)
        works[f"evaluate {rule}"] = lambda split=split, chosen=chosen: evaluate(model, split, chosen)
    return {what: measured(work) for what, work in works.items()}


def has_kernel(name: str) -> bool:
    """Whether a kernel makes the lists of the best items."""
    model = recommender(name)
    return not isinstance(model.scorer(model.encode(Queries(torch.arange(2, device=SHADOW)))), BlockScorer)


def rows(inputs: Inputs = INPUTS) -> Encoded:
    """Twelve rows of a log."""
    draw, count = np.random.default_rng(0), 12
    ids = np.stack([draw.integers(0, field.size, count) for field in inputs.fields], 1).astype(np.int32)
    offsets = np.arange(count + 1, dtype=np.int64) * 2
    bags = {
        bag.name: Bags(
            draw.integers(0, bag.size, 2 * count).astype(np.int32),
            offsets,
            draw.random(2 * count).astype(np.float32) if bag.is_weighted else None,
        )
        for bag in inputs.bags
    }
    bags |= {
        each.name: Bags(draw.integers(0, each.size, 2 * count).astype(np.int32), offsets) for each in inputs.sequences
    }
    values = draw.random((count, len(inputs.numerics))).astype(np.float32)
    return Encoded(ids, values, bags, (draw.random(count) < 0.5).astype(np.float32))


def click_serving(name: str) -> dict[str, Any]:
    """Predictions."""
    with OnShadow():
        model = models.create(name, inputs=INPUTS)
    return {"predict": measured(lambda: logits_of_rows(model, rows()))}


def histories(name: str) -> dict[str, Any]:
    """A step and predictions with sequences that share tables: pooled, and weighed in each way that the model knows."""
    ways: dict[str, dict[str, Any]] = {"pooled": {}}
    if hasattr(models.config_class(name), "attention"):
        ways = {"pooled": {"attention": "none"}, "softmax": {"attention": "din"}, "bst": {"attention": "bst"}}
        ways["raw"] = {"attention": "din", "attention_weights": "raw", "attention_activation": "dice"}
    out = {}
    for way, options in ways.items():
        out[f"{way}: step"] = training_step(name, "adagrad", inputs=HISTORIES, **options)
        with OnShadow():
            model = models.create(name, inputs=HISTORIES, **options)
        out[f"{way}: predict"] = measured(lambda m=model: logits_of_rows(m, rows(HISTORIES)))
    return out


def faults() -> dict[str, Any]:
    """What must be noticed: a tensor of the CPU beside one of the device, looks at values, sums and writes."""
    there = torch.ones(3, device=SHADOW)
    at = torch.zeros(2, dtype=torch.int64, device=SHADOW)
    return {
        "mixed": measured(lambda: there + torch.ones(3)),
        "look": measured(lambda: bool(there.sum() > 0)),
        "size": measured(lambda: [embedding_plan(at, 7) for _ in range(2)]),  # each time, not the first alone
        "sum": measured(lambda: there.index_add(0, at, there[:2])),
        "put": measured(lambda: there.index_put((at,), there[:2], accumulate=True)),
        "write": measured(lambda: there.index_copy(0, at, there[:2])),
    }


def sequences(batch_size: int) -> dict[str, Any]:
    """An epoch of windows of histories, which no model here trains on."""
    options = {"length": 5, "seed": 0, "num_negatives": 2, "device": SHADOW}
    return measured(lambda: list(SequenceBatches(DATA, batch_size=batch_size, **options).epoch(0)))


def main() -> None:
    """Everything, one JSON object."""
    global _mode
    found: dict[str, Any] = {}
    places = dict(line.split("=") for line in sys.argv[1:])
    for name, place in places.items():
        register(name, place)

    def is_asked(name: str) -> bool:
        return not places or name in places

    _mode = Shadow()
    with _mode:
        found["faults"] = faults()
        found["sequences"] = {"few batches": sequences(20), "many batches": sequences(2)}
        for name in filter(is_asked, models.recommenders()):
            kind = models.model_class(name)
            optimizers = kind.config_class.optimizers if kind.trains_by_gradient else ()
            steps = {optimizer: training_step(name, optimizer) for optimizer in optimizers}
            found[name] = {"steps": steps, "serving": serving(name), "has_kernel": has_kernel(name)}
            if optimizers:
                model = recommender(name)
                batches, chosen = model.batches(DATA, 0), Optimizers(model)
                found[name]["epoch"] = measured(lambda m=model, o=chosen, b=batches: train_epoch(m, o, b, 0))
                found[name]["checkpoint"] = checkpoint(name)
        for name in filter(is_asked, models.click_models()):
            kind = models.model_class(name)
            optimizers = kind.config_class.optimizers if kind.trains_by_gradient else ()
            steps = {optimizer: training_step(name, optimizer) for optimizer in optimizers}
            if "step_in_backward" in taken_options(models.config_class(name)):
                steps["adagrad in backward"] = training_step(name, "adagrad", step_in_backward=True)
            found[name] = {"steps": steps, "serving": click_serving(name)}
            if optimizers:
                found[name]["histories"] = histories(name)
            if optimizers:
                found[name]["checkpoint"] = checkpoint(name)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
