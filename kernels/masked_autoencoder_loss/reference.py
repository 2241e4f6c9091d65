"""What `masked_autoencoder_loss` means, in plain PyTorch: every row dense, and a mask on the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from deeprec.kernels.embedding_bag.reference import wide_dtype
from deeprec.kernels.sampled_linear_loss.reference import activate, entry_losses


def rows_of(indptr: Tensor, nnz: int) -> Tensor:
    """The row of each entry, [nnz], int64."""
    rows = torch.arange(indptr.shape[0] - 1, device=indptr.device)
    return torch.repeat_interleave(rows, indptr.diff().to(torch.int64), output_size=nnz)


def masked_autoencoder_loss_reference(
    inputs: tuple[Tensor, Tensor, Tensor],
    outputs: tuple[Tensor, Tensor, Tensor],
    encoder: Tensor,
    encoder_bias: Tensor | None,
    decoder: Tensor,
    decoder_bias: Tensor | None,
    entry_weights: Tensor | None,
    code_activation: int,
    activation: int,
    loss: int,
) -> tuple[Tensor, Tensor]:
    """Loss [] and predictions [nnz_out] from indptr, indices, values of both sides; autograd goes through."""
    wide = wide_dtype(encoder.dtype)
    (indptr, indices, values), (out_indptr, out_indices, targets) = inputs, outputs
    shape = (indptr.shape[0] - 1, encoder.shape[0])
    x = encoder.new_zeros(shape, dtype=wide)
    x = x.index_put((rows_of(indptr, indices.shape[0]), indices.long()), values.to(wide), accumulate=True)
    z = x @ encoder.to(wide)
    codes, _ = activate(z if encoder_bias is None else z + encoder_bias.to(wide), code_activation)
    logits = codes @ decoder.to(wide).T
    logits = logits if decoder_bias is None else logits + decoder_bias.to(wide)
    observed = logits[rows_of(out_indptr, out_indices.shape[0]), out_indices.long()]
    losses, predictions, _ = entry_losses(observed, targets.to(wide), activation, loss)
    if entry_weights is not None:
        losses = losses * entry_weights
    return losses.sum(), predictions
