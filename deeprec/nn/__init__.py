"""Layers over the kernels: plain `torch.nn.Module`s that drop into any PyTorch model."""

from __future__ import annotations

from deeprec.nn.attention import PairAttention
from deeprec.nn.cross import CrossNetwork
from deeprec.nn.dropout import Dropout
from deeprec.nn.embedding import Embedding
from deeprec.nn.embedding_bag import EmbeddingBag
from deeprec.nn.embedding_collection import EmbeddingCollection, Table
from deeprec.nn.fm import BiInteraction, FactorizationMachine, FMInteraction
from deeprec.nn.mlp import MLP
from deeprec.nn.replace import replace_embeddings
from deeprec.nn.sequence_encoder import SequenceEncoder
from deeprec.nn.tower import TermBatch, TermRows, Tower

__all__ = [
    "MLP",
    "BiInteraction",
    "CrossNetwork",
    "Dropout",
    "Embedding",
    "EmbeddingBag",
    "EmbeddingCollection",
    "FMInteraction",
    "FactorizationMachine",
    "PairAttention",
    "SequenceEncoder",
    "Table",
    "TermBatch",
    "TermRows",
    "Tower",
    "replace_embeddings",
]
