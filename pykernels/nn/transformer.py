"""The layers of a transformer in the place of torch's: attention without stored scores, and each residual connection
with its dropout and the layer norm after it in one pass."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..functional.layer_norm import layer_norm
from .attention import MultiheadAttention, from_nested, to_nested
from .layer_norm import LayerNorm

__all__ = ["TransformerEncoderLayer", "TransformerDecoderLayer"]


_any_global_hook: Any = nn.modules.module._has_any_global_hook
_canonical: Any = F._canonical_mask


def _is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a call of the module does nothing but what its kind does: no hooks, no other class, no other forward."""
    if type(module) not in kinds or "forward" in module.__dict__ or _any_global_hook():
        return False
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks)


def _add(x: Tensor, update: Tensor, dropout: nn.Module | None) -> Tensor:
    return x + (update if dropout is None else dropout(update))


def _add_and_normalize(x: Tensor, update: Tensor, dropout: nn.Module | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """norm(x + dropout(update)), and that sum: at once, if both modules are what they were made as."""
    plain = dropout is None or _is_plain(dropout, nn.Dropout)
    if not plain or not _is_plain(norm, nn.LayerNorm, LayerNorm):
        total = _add(x, update, dropout)
        return norm(total), total
    given: Any = norm
    p = getattr(dropout, "p", 0.0) if dropout is not None and dropout.training else 0.0
    shape, weight, bias = given.normalized_shape, given.weight, given.bias
    return layer_norm(update, shape, weight, bias, given.eps, residual=x, dropout_p=p, return_total=True)


def _checked(mask: Tensor | None, padding: Tensor | None, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Masks of one kind, or torch's error or warning, which has their names in it."""
    kinds = {m.dtype for m in (mask, padding) if m is not None}
    if len(kinds) <= 1 and all(kind == torch.bool or kind.is_floating_point for kind in kinds):
        return mask, padding
    of_mask = None if mask is None else mask.dtype
    padding = _canonical(padding, "src_key_padding_mask", of_mask, "src_mask", dtype)
    return _canonical(mask, "src_mask", None, "", dtype, False), padding


def _attend(
    attention: Any, x: Tensor, mem: Tensor, mask: Tensor | None, padding: Tensor | None, is_causal: bool
) -> Tensor:
    """By name what torch's layers give by name, for hooks that see it."""
    given = {"attn_mask": mask, "key_padding_mask": padding, "is_causal": is_causal, "need_weights": False}
    return attention(x, mem, mem, **given)[0]


class _Layer(nn.Module):
    """What both layers do with their blocks.

    torch's blocks (`_sa_block`, `_mha_block`, `_ff_block`) end in a dropout, which here goes into the sum. A subclass
    that has a block of its own has it called, as torch's layers call it.
    """

    norm_first: bool

    def _update(self, block: str, dropout: nn.Module, *args: Any) -> tuple[Tensor, nn.Module | None]:
        """What a block adds, and the dropout that it still has to go through."""
        ours = TransformerDecoderLayer if isinstance(self, TransformerDecoderLayer) else TransformerEncoderLayer
        if block in self.__dict__ or getattr(type(self), block) is not getattr(ours, block):
            return getattr(self, block)(*args), None
        return getattr(self, f"{block}_without_dropout")(*args), dropout

    def _run(self, x: Tensor, blocks: Sequence[tuple[str, nn.Module, nn.Module, Sequence[Any]]]) -> Tensor:
        """x through (block, dropout, norm, further arguments), one after the other."""
        if not self.norm_first:
            for block, dropout, norm, args in blocks:
                update, left = self._update(block, dropout, x, *args)
                x, _ = _add_and_normalize(x, update, left, norm)
            return x
        y = blocks[0][2](x)
        for i, (block, dropout, _, args) in enumerate(blocks):
            update, left = self._update(block, dropout, y, *args)
            if i + 1 < len(blocks):
                y, x = _add_and_normalize(x, update, left, blocks[i + 1][2])
            else:
                x = _add(x, update, left)
        return x

    def _sa_block_without_dropout(
        self, x: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None, is_causal: bool = False
    ) -> Tensor:
        return _attend(self.self_attn, x, x, attn_mask, key_padding_mask, is_causal)

    def _ff_block_without_dropout(self, x: Tensor) -> Tensor:
        layer: Any = self
        x = layer.linear1(x)
        if layer.activation is F.relu and _is_plain(layer.linear1, nn.Linear):
            x = x.relu_()  # nobody else has it
        else:
            x = layer.activation(x)
        return layer.linear2(layer.dropout(x))


class TransformerEncoderLayer(_Layer, nn.TransformerEncoderLayer):
    r"""A layer of a transformer's encoder; takes what :class:`torch.nn.TransformerEncoderLayer` takes, and has its
    parameters. A stack of them: ``torch.nn.TransformerEncoder(layer, n)``.

    .. math::
        z = \mathrm{norm}_1(x + \mathrm{attention}(x)), \quad
        y = \mathrm{norm}_2(z + W_2\, \mathrm{activation}(W_1 z + b_1) + b_2)

    and with `norm_first` :math:`z = x + \mathrm{attention}(\mathrm{norm}_1(x))`, likewise y; with dropout in front of
    each sum.

    With `is_causal`, `src_mask` is not looked at. A row that sees nothing goes on without attention, where torch's
    layer gives what is no number.

    Source: Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762).
    """

    @functools.wraps(nn.TransformerEncoderLayer.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.self_attn = MultiheadAttention.taking_over(self.self_attn)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """As :meth:`torch.nn.TransformerEncoderLayer.forward`: `src` is [L, N, E], with `batch_first` [N, L, E], or
        [L, E]; the result is like it."""
        if src.is_nested:
            if src_mask is not None or src_key_padding_mask is not None:
                raise AssertionError("src_key_padding_mask and src_mask are not supported with NestedTensor input")
            padded, hidden = from_nested(src)
            return to_nested(self.forward(padded, None, hidden), hidden, src.layout)
        src_mask, src_key_padding_mask = _checked(src_mask, src_key_padding_mask, src.dtype)
        blocks = [
            ("_sa_block", self.dropout1, self.norm1, (src_mask, src_key_padding_mask, is_causal)),
            ("_ff_block", self.dropout2, self.norm2, ()),
        ]
        return self._run(src, blocks)

    def _sa_block(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.dropout1(self._sa_block_without_dropout(*args, **kwargs))

    def _ff_block(self, x: Tensor) -> Tensor:
        return self.dropout2(self._ff_block_without_dropout(x))


class TransformerDecoderLayer(_Layer, nn.TransformerDecoderLayer):
    r"""A layer of a transformer's decoder; takes what :class:`torch.nn.TransformerDecoderLayer` takes, and has its
    parameters. A stack of them: ``torch.nn.TransformerDecoder(layer, n)``.

    .. math::
        z = \mathrm{norm}_1(x + \mathrm{attention}(x)), \quad
        u = \mathrm{norm}_2(z + \mathrm{attention}(z, m)), \quad
        y = \mathrm{norm}_3(u + W_2\, \mathrm{activation}(W_1 u + b_1) + b_2)

    over the memory m, and with `norm_first` as in the encoder's layer. See :class:`TransformerEncoderLayer`.

    Source: Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762).
    """

    @functools.wraps(nn.TransformerDecoderLayer.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.self_attn = MultiheadAttention.taking_over(self.self_attn)
        self.multihead_attn = MultiheadAttention.taking_over(self.multihead_attn)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """As :meth:`torch.nn.TransformerDecoderLayer.forward`: `tgt` [L, N, E] and `memory` [S, N, E], or with
        `batch_first` [N, L, E] and [N, S, E], or [L, E] and [S, E]; the result is like `tgt`."""
        over_memory = memory, memory_mask, memory_key_padding_mask, memory_is_causal
        blocks = [
            ("_sa_block", self.dropout1, self.norm1, (tgt_mask, tgt_key_padding_mask, tgt_is_causal)),
            ("_mha_block", self.dropout2, self.norm2, over_memory),
            ("_ff_block", self.dropout3, self.norm3, ()),
        ]
        return self._run(tgt, blocks)

    def _sa_block(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.dropout1(self._sa_block_without_dropout(*args, **kwargs))

    def _mha_block_without_dropout(
        self,
        x: Tensor,
        mem: Tensor,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        is_causal: bool = False,
    ) -> Tensor:
        return _attend(self.multihead_attn, x, mem, attn_mask, key_padding_mask, is_causal)

    def _mha_block(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.dropout2(self._mha_block_without_dropout(*args, **kwargs))

    def _ff_block(self, x: Tensor) -> Tensor:
        return self.dropout3(self._ff_block_without_dropout(x))
