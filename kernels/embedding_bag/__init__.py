"""Lookup and pooling over several embedding tables in one call, with the gradient by row and the optimizer's step.

`embedding_bags` serves any number of tables of mixed width; `embedding_bag` is the call of
`torch.nn.functional.embedding_bag`. The gradient is coalesced: each touched row once, its entries added in a fixed
order, bitwise the same for any number of threads and in every run on a GPU. With `update=` the optimizer's step is
taken in the backward pass, while a row's gradient is still in the cache; gradients of tables are then never stored.
"""

from deeprec.kernels.embedding_bag.call import MODES, Call, GradStep, RowUpdate, mark_changed
from deeprec.kernels.embedding_bag.plan import BagPlan, embedding_bags_plan, require_bag_plan
from deeprec.kernels.embedding_bag.several import embedding_bags
from deeprec.kernels.embedding_bag.single import embedding_bag, flat_bags

__all__ = [
    "MODES",
    "BagPlan",
    "Call",
    "GradStep",
    "RowUpdate",
    "embedding_bag",
    "embedding_bags",
    "embedding_bags_plan",
    "flat_bags",
    "mark_changed",
    "require_bag_plan",
]
