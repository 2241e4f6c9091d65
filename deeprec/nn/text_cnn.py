"""Texts to vectors: convolutions over windows of words, and the largest value of each over the text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.nn.dropout import Dropout
from deeprec.nn.embedding import Embedding
from deeprec.nn.layer import layer_forward
from deeprec.nn.media_encoder import MediaEncoder, at_least_one, draw_weights

_EMBEDDING_STD = 0.1


class TextCNN(MediaEncoder):
    """d = tanh(P dropout(tanh(H [c_3; c_4; c_5] + b)) + p), c_h[k] = max over i of relu(F_hk . x[i : i + h] + b_hk).

    x are the vectors of the words. Windows lie within the text: the last one ends with its last word, and a text of
    fewer words than a window has one, with zeros behind the words. So a text has the same vector however much padding
    follows it and whatever it is batched with, and one without words that of the biases.

    Parameters: `words.weight` [V, E], of which row 0, the padding, is never read; `convolutions.I.*`, [filters, E, h]
    for each window; `hidden.*` where there is a hidden layer; `output.*`.

    Args:
        vocabulary: V, ids of words with the padding, >= 2.
        width: D, >= 1.
        embedding_dim: E, >= 1.
        windows: words that a filter sees, each >= 1.
        filters: of each window, >= 1.
        hidden: width of the layer between, >= 0; 0: none.
        dropout: share of the hidden layer (without one, of the largest values) that is dropped in training, in [0, 1).
        activation: of the hidden layer and of the result, "tanh" or, of the hidden layer alone, "relu".
        generator: source of the initial weights; torch's global one by default.
    Raises:
        ValueError: an argument is out of range.
    Reference: Kim 2014 (arXiv 1408.5882); Kim et al. 2016 (ConvMF, RecSys), section 3.2, whose sizes are the defaults.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 50,
        *,
        embedding_dim: int = 200,
        windows: Sequence[int] = (3, 4, 5),
        filters: int = 100,
        hidden: int = 200,
        dropout: float = 0.2,
        activation: str = "tanh",
        generator: torch.Generator | None = None,
    ) -> None:
        sizes = {"vocabulary": vocabulary, "embedding_dim": embedding_dim, "filters": filters, "hidden": hidden}
        chosen = {"windows": list(windows), "dropout": dropout, "activation": activation}
        super().__init__(width, {**sizes, **chosen})
        at_least_one("TextCNN", embedding_dim=embedding_dim, filters=filters)
        if vocabulary < 2 or hidden < 0:
            raise ValueError(f"TextCNN: vocabulary must be >= 2 and hidden >= 0, got {vocabulary} and {hidden}")
        if not windows or min(windows) < 1:
            raise ValueError(f"TextCNN: windows must be sizes >= 1, got {tuple(windows)}; (3, 4, 5) is usual")
        if not 0 <= dropout < 1:
            raise ValueError(f"TextCNN: dropout must lie in [0, 1), got {dropout}; it is the share that is dropped")
        if activation not in ("tanh", "relu"):
            raise ValueError(f"TextCNN: activation must be tanh or relu, got {activation!r}")
        self.windows, self.activation = tuple(windows), activation
        self.words = Embedding(vocabulary, embedding_dim, sparse=False, name="word")
        self.convolutions = nn.ModuleList(nn.Conv1d(embedding_dim, filters, size) for size in self.windows)
        pooled = filters * len(self.windows)
        self.hidden = nn.Linear(pooled, hidden) if hidden else None
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(hidden or pooled, width)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Word vectors N(0, 0.1^2), the rest as `draw_weights` says."""
        self.words.weight.normal_(0.0, _EMBEDDING_STD, generator=generator)
        draw_weights(self, generator)

    @layer_forward
    def forward(self, ids: Tensor) -> Tensor:
        """Vectors of texts.

        Args:
            ids: [B, T], int32 or int64, in [0, V): the words of each text in their order, then zeros. T may be 0.
        Returns:
            [B, D], dtype of the parameters.
        Raises:
            ValueError: ids is not of that shape. TypeError: it is not of whole numbers. IndexError: an id is too large.
        """
        if ids.dim() != 2:
            raise ValueError(f"TextCNN: ids must be [B, T], got {tuple(ids.shape)}")
        if ids.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"TextCNN: ids must be int32 or int64, got {ids.dtype}; pad and number the words first")
        longest = max(self.windows)
        if ids.shape[1] < longest:
            ids = F.pad(ids, (0, longest - ids.shape[1]))
        is_word = ids != 0
        places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        lengths = (is_word * places).amax(1, keepdim=True)  # [B, 1]
        words = self.words(ids) * is_word.unsqueeze(2)  # the padding is zeros, and learns nothing
        words = words.transpose(1, 2)  # [B, E, T]
        largest = []
        for size, convolution in zip(self.windows, self.convolutions, strict=True):
            values = convolution(words)  # [B, filters, T - size + 1]
            is_outside = places[: values.shape[2]] + (size - 1) > lengths.clamp(min=size)
            largest.append(values.masked_fill(is_outside.unsqueeze(1), -torch.inf).amax(2))
        x = F.relu(torch.cat(largest, 1))
        if self.hidden is not None:
            x = torch.tanh(self.hidden(x)) if self.activation == "tanh" else F.relu(self.hidden(x))
        x = self.output(self.dropout(x))
        return torch.tanh(x) if self.activation == "tanh" else x

    def extra_repr(self) -> str:
        """What its parameters do not say."""
        return f"width={self.width}, windows={self.windows}, activation={self.activation}"
