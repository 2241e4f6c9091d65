"""What one would write without the library: a FastAPI handler around plain PyTorch, with the weights of a pipeline.

The same stages with the same numbers: EASE's best items, popular items, items near to the last ones; DeepFM; MMR. Each
in the form that is quickest in plain PyTorch and Python: rows of EASE's matrix are added up, neighbours are looked up,
the tables of users and items are encoded before, and nothing is computed for a request that could be before.

Started by bench.serve: python bench/peers/plain_handler.py WEIGHTS.pt PORT
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from torch import Tensor, nn
from torch.nn import functional as F


class PlainDeepFM(nn.Module):
    """DeepFM with the inputs of the pipeline: fields, numbers and one bag.

    Args:
        weights: by name, as `bench.serve.exported` writes them.
    """

    def __init__(self, weights: dict[str, Any]) -> None:
        super().__init__()
        self.fields = nn.ModuleList(nn.Embedding.from_pretrained(table) for table in weights["fields"])
        self.linear = nn.ModuleList(nn.Embedding.from_pretrained(table) for table in weights["linear"])
        self.bag = nn.EmbeddingBag.from_pretrained(weights["bag"], mode="mean")
        self.bag_linear = nn.EmbeddingBag.from_pretrained(weights["bag_linear"], mode="mean")
        self.numbers, self.numbers_linear = weights["numbers"], weights["numbers_linear"]
        layers: list[nn.Module] = []
        for weight, bias, norm in zip(weights["layers"], weights["biases"], weights["norms"], strict=True):
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.weight.data, layer.bias.data = weight, bias
            one = nn.BatchNorm1d(len(bias))
            one.load_state_dict(norm)
            layers += [layer, one, nn.ReLU()]
        last = nn.Linear(weights["output"].shape[1], 1)
        last.weight.data, last.bias.data = weights["output"], weights["output_bias"]
        self.mlp = nn.Sequential(*layers, last)

    def forward(self, ids: Tensor, values: Tensor, bag: Tensor, offsets: Tensor) -> Tensor:
        """Logits [n] of ids [n, F], values [n, P] and a bag."""
        embeddings = [table(ids[:, at]) for at, table in enumerate(self.fields)]
        vectors = torch.cat([torch.stack(embeddings, 1), values.unsqueeze(2) * self.numbers], 1)
        vectors = torch.cat([vectors, self.bag(bag, offsets).unsqueeze(1)], 1)
        pairs = 0.5 * (vectors.sum(1).square() - vectors.square().sum(1)).sum(1)
        first = torch.stack([table(ids[:, at]) for at, table in enumerate(self.linear)], 1).sum((1, 2))
        first = first + (values * self.numbers_linear.T).sum(1) + self.bag_linear(bag, offsets).squeeze(1)
        return pairs + first + self.mlp(vectors.flatten(1)).squeeze(1)


class PlainPipeline:
    """All stages for one person.

    Args:
        state: arrays and options, as `bench.serve.exported` writes them.
    """

    def __init__(self, state: dict[str, Any]) -> None:
        self.state, self.model = state, PlainDeepFM(state["model"]).eval()
        self.histories = [torch.tensor(items) for items in state["histories"]]
        self.trained = [torch.tensor(items) for items in state["trained"]]
        self.popular = state["counts"].argsort(descending=True, stable=True)

    @torch.inference_mode()
    def recommend(self, user: int, k: int) -> list[tuple[int, float]]:
        """(item, score), best first, by internal ids."""
        s = self.state
        history = self.histories[user]
        num_items = len(s["counts"])
        seen = torch.zeros(num_items, dtype=torch.bool)
        seen[history] = True
        ease = s["ease"][self.trained[user]].sum(0)
        from_ease = ease.masked_fill(seen, -torch.inf).topk(s["quotas"][0]).indices
        head = self.popular[: s["quotas"][1] + len(history)]
        from_popular = head[~seen[head]][: s["quotas"][1]]
        last = history[-s["last"] :].flip(0)
        weights = s["similarities"][last] * (s["decay"] ** torch.arange(len(last))).unsqueeze(1)
        near = torch.zeros(num_items).index_add_(0, s["neighbors"][last].flatten(), weights.flatten())
        best_near = near.masked_fill(seen, -torch.inf).topk(s["quotas"][2])
        from_near = best_near.indices[best_near.values > 0]
        candidates = torch.cat([from_ease, from_popular, from_near]).unique()
        values = self._values(user, candidates, (from_ease, from_popular, from_near), (ease, s["counts"], near))
        user_ids = s["user_ids"][user].expand(len(candidates), -1)
        ids = torch.where(s["of_item"], s["item_ids"][candidates], user_ids)
        starts, counts = s["bag_offsets"][candidates], s["bag_offsets"][candidates + 1] - s["bag_offsets"][candidates]
        offsets = F.pad(counts.cumsum(0), (1, 0))[:-1]
        entries = torch.arange(int(counts.sum())) + torch.repeat_interleave(starts - offsets, counts)
        scores = self.model(ids, values, s["bag_ids"][entries], offsets)
        best = scores.topk(min(s["pool"], len(scores)))
        return self._diverse(candidates[best.indices], best.values, k)

    def _values(self, user: int, candidates: Tensor, lists: Any, scores: Any) -> Tensor:
        s = self.state
        columns = []
        for items, score in zip(lists, scores, strict=True):
            own = score[candidates].float()
            own = own - own.mean()
            rank = torch.zeros(len(s["counts"]))
            rank[items] = 1 / torch.arange(1, len(items) + 1).sqrt()
            columns += [own / own.square().mean().sqrt().clamp(min=1e-9), rank[candidates]]
        columns += [
            s["counts"][candidates].float().log1p(),
            torch.full((len(candidates),), float(len(self.histories[user]))).log1p(),
        ]
        return ((torch.stack(columns, 1) - s["shift"]) * s["scale"]).clamp(s["low"], s["high"]).float()

    def _diverse(self, items: Tensor, scores: Tensor, k: int) -> list[tuple[int, float]]:
        s = self.state
        unit = (scores - scores.min()) / (scores.max() - scores.min())
        vectors = s["vectors"][items]
        costs = s["diversity"] * vectors @ vectors.T
        gains = (1 - s["diversity"]) * unit
        highest, taken = torch.zeros_like(gains), torch.zeros(len(gains), dtype=torch.bool)
        order: list[int] = []
        for _ in range(min(k, len(items))):
            best = int((gains - highest).masked_fill(taken, -torch.inf).argmax())
            highest = torch.maximum(highest, costs[best]) if order else costs[best]
            taken[best] = True
            order.append(best)
        return [(int(items[place]), float(scores[place])) for place in order]


def application(path: str) -> FastAPI:
    """GET /recommend/USER?k=10, external ids."""
    state = torch.load(path, weights_only=True)
    pipeline, app = PlainPipeline(state), FastAPI()
    users = {user: code for code, user in enumerate(state["users"])}
    items, titles = state["items"], state["titles"]

    # In the event loop: plain functions run in threads of their own, and such that compute wait for each other.
    @app.get("/v1/recommend/{user_id}")
    async def recommend(user_id: int, k: int = 10) -> dict[str, Any]:
        best = pipeline.recommend(users[user_id], k)
        return {"items": [{"item_id": items[item], "title": titles[item], "score": score} for item, score in best]}

    @app.get("/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    return app


if __name__ == "__main__":
    torch.set_num_threads(1)
    uvicorn.run(
        application(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), access_log=False, log_level="warning"
    )
