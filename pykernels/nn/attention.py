"""Multi-head attention in the place of `torch.nn.MultiheadAttention`, and encoder-decoder attention by dot products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter, init
from torch.nn import functional as F

from ..functional.dot_attention import dot_attention
from ..functional.multi_head_attention import multi_head_attention_forward

__all__ = ["MultiheadAttention", "DotAttention"]


class MultiheadAttention(nn.MultiheadAttention):
    r"""Multi-head attention; takes what :class:`torch.nn.MultiheadAttention` takes, and has its parameters.

    .. math::
        y = \mathrm{concat}_h\big(\mathrm{softmax}(Q_h K_h^T / \sqrt d + M)\, V_h\big)\, W_o^T + b_o

    The scores are never stored, with `need_weights` neither. See
    :func:`pykernels.functional.multi_head_attention_forward` for where it differs from torch's.

    Source: Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762).

    Example::

        >>> attention = pykernels.MultiheadAttention(512, 8, batch_first=True)
        >>> y, _ = attention(x, x, x, need_weights=False)
    """

    @classmethod
    def taking_over(cls, module: nn.MultiheadAttention) -> MultiheadAttention:
        """Ours in the place of torch's, with its parameters, hooks and all it holds."""
        ours = cls.__new__(cls)
        ours.__dict__ = dict(module.__dict__)
        return ours

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As :meth:`torch.nn.MultiheadAttention.forward`: the result, and the weights where they are wanted.

        Query, key and value are [L, N, E], [S, N, kdim], [S, N, vdim], with `batch_first` [N, L, E] and so on, or
        without N; the result is like the query, the weights [N, L, S] (or [N, H, L, S]).
        A nested tensor is taken for self-attention without masks and weights.
        """
        if query.is_nested or key.is_nested or value.is_nested:
            if query is not key or key is not value or need_weights or (attn_mask, key_padding_mask) != (None, None):
                raise AssertionError(
                    "MultiheadAttention takes a NestedTensor as query, key and value at once only, without masks and "
                    "with need_weights=False"
                )
            padded, hidden = from_nested(query)
            return to_nested(self.forward(padded, padded, padded, hidden, False)[0], hidden, query.layout), None
        return multi_head_attention_forward(
            query,
            key,
            value,
            self.embed_dim,
            self.num_heads,
            self.in_proj_weight,
            self.in_proj_bias,
            self.bias_k,
            self.bias_v,
            self.add_zero_attn,
            self.dropout,
            self.out_proj.weight,
            self.out_proj.bias,
            training=self.training,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            use_separate_proj_weight=not self._qkv_same_embed_dim,
            q_proj_weight=self.q_proj_weight,
            k_proj_weight=self.k_proj_weight,
            v_proj_weight=self.v_proj_weight,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
            batch_first=self.batch_first,
        )


def from_nested(nested: Tensor) -> tuple[Tensor, Tensor]:
    """A nested tensor [N, *, E] as a padded one, and where it is padding, [N, L]."""
    padded = nested.to_padded_tensor(0.0)
    lengths = torch.tensor([part.shape[0] for part in nested.unbind()], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) >= lengths[:, None]


def to_nested(padded: Tensor, hidden: Tensor, layout: torch.layout) -> Tensor:
    lengths = (~hidden).sum(1).tolist()
    parts = [part[:length] for part, length in zip(padded, lengths, strict=True)]
    return torch.nested.as_nested_tensor(parts, layout=layout)


class DotAttention(nn.Module):
    r"""Attention of a decoder over the states of an encoder, by dot products ("multiplicative").

    .. math::
        e_{ij} = \mathrm{scale}\; (W_a d_i) \cdot (U_a h_j), \quad
        a_{ij} = \frac{\exp e_{ij}}{\sum_k \exp e_{ik}}, \quad
        C_i = \sum_j a_{ij} h_j

    Args:
        query_size: of a decoder's state d.
        memory_size: of an encoder's state h.
        attention_size: of what is multiplied, W_a d and U_a h; `memory_size` by default.
        batch_first: d and h are [B, L, D] and [B, S, E] instead of [L, B, D] and [S, B, E], as in torch's modules.
        scale: of the scores, which grow with `attention_size`; its inverse root makes them those of scaled dot-product
            attention.

    Parameters: `query_weight` W_a [A, D] and `memory_weight` U_a [A, E], at first uniform after Glorot and Bengio.

    Source: Luong, Pham and Manning 2015 (https://arxiv.org/abs/1508.04025).

    Example::

        >>> attention = pykernels.DotAttention(256, 512)
        >>> context, weights = attention(decoder_states, encoder_states, lengths, need_weights=True)
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        attention_size: int | None = None,
        batch_first: bool = False,
        scale: float = 1.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        sizes = query_size, memory_size, memory_size if attention_size is None else attention_size
        if min(sizes) <= 0:
            raise ValueError(
                f"query_size, memory_size and attention_size must be greater than 0, got {', '.join(map(str, sizes))}"
            )
        self.query_size, self.memory_size, self.attention_size = sizes
        self.batch_first, self.scale = batch_first, scale
        self.query_weight = Parameter(torch.empty(self.attention_size, query_size, device=device, dtype=dtype))
        self.memory_weight = Parameter(torch.empty(self.attention_size, memory_size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.xavier_uniform_(self.query_weight)
        init.xavier_uniform_(self.memory_weight)

    def keys(self, memory: Tensor) -> Tensor:
        """U_a h, for `forward`: where a decoder asks the same memory step by step, once is enough."""
        return F.linear(memory, self.memory_weight)

    def forward(
        self,
        query: Tensor,
        memory: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        keys: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Contexts for the decoder's states.

        Args:
            query: d, [L, B, D], or [B, L, D] with `batch_first`.
            memory: h, [S, B, E], or [B, S, E].
            lengths: [B], how many states of the encoder each example has.
            mask: of bool, broadcast to [B, L, S]: true where a state of the decoder sees one of the encoder.
            keys: what `keys(memory)` gave.

        Returns:
            C, [L, B, E], or [B, L, E]; and the weights [B, L, S], or None without `need_weights`.
        """
        given = (query, memory, keys)
        if not self.batch_first:
            query, memory, keys = (None if t is None else t.transpose(0, 1) for t in given)  # type: ignore[assignment]
        found = dot_attention(
            query,
            memory,
            self.query_weight,
            self.memory_weight,
            keys=keys,
            mask=mask,
            lengths=lengths,
            scale=self.scale,
            return_weights=need_weights,
        )
        context, weights = found if need_weights else (found, None)
        return context if self.batch_first else context.transpose(0, 1), weights

    def extra_repr(self) -> str:
        text = f"{self.query_size}, {self.memory_size}, {self.attention_size}"
        if self.batch_first:
            text += ", batch_first=True"
        return text if self.scale == 1.0 else f"{text}, scale={self.scale}"
