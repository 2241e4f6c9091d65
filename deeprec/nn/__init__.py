"""Layers over the kernels: plain `torch.nn.Module`s that drop into any PyTorch model."""

from __future__ import annotations

from deeprec.nn.attention import PairAttention
from deeprec.nn.audio_cnn import AudioCNN, mel_filters
from deeprec.nn.cross import CrossNetwork
from deeprec.nn.dropout import Dropout
from deeprec.nn.embedding import Embedding
from deeprec.nn.embedding_bag import EmbeddingBag
from deeprec.nn.embedding_collection import EmbeddingCollection, Table
from deeprec.nn.fm import BiInteraction, FactorizationMachine, FMInteraction
from deeprec.nn.image_cnn import ImageCNN
from deeprec.nn.mlp import MLP
from deeprec.nn.neighbour_attention import ComponentAttention, NeighbourAttention
from deeprec.nn.replace import replace_embeddings
from deeprec.nn.sequence_convolution import SequenceConvolution
from deeprec.nn.sequence_encoder import SequenceEncoder
from deeprec.nn.text_cnn import TextCNN
from deeprec.nn.timm_image import timm_encoder
from deeprec.nn.tower import TermBatch, TermRows, Tower
from deeprec.nn.video_cnn import VideoCNN

__all__ = [
    "MLP",
    "AudioCNN",
    "BiInteraction",
    "ComponentAttention",
    "CrossNetwork",
    "Dropout",
    "Embedding",
    "EmbeddingBag",
    "EmbeddingCollection",
    "FMInteraction",
    "FactorizationMachine",
    "ImageCNN",
    "NeighbourAttention",
    "PairAttention",
    "SequenceConvolution",
    "SequenceEncoder",
    "Table",
    "TermBatch",
    "TermRows",
    "TextCNN",
    "Tower",
    "VideoCNN",
    "mel_filters",
    "replace_embeddings",
    "timm_encoder",
]
