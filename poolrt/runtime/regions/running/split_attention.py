"""torch's own nn.MultiheadAttention with some of its heads on each card.

Its forward takes the number of heads and the width from its inputs, so a replica with fewer heads cannot run it. This
one computes the same from the pieces:

    in_proj_weight   q|k|v rows of the card's heads        out_proj.weight   columns of the card's heads
    in_proj_bias     likewise                              out_proj.bias     once, on the lead card
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poolrt.runtime.regions.plan import SplitAttention
from poolrt.runtime.regions.replica import holder_of, parameter_of
from poolrt.runtime.regions.running.followed import Followed
from poolrt.runtime.regions.running.keyed import KeyedCards
from poolrt.runtime.regions.running.traffic import UNCOUNTED, Traffic
from poolrt.runtime.state.slot import Slot
from poolrt.transfer.collectives.exchange import Exchange

Pieces = Callable[[Tensor], Sequence[Tensor]]


class HeadSplitAttention:
    """The forward of nn.MultiheadAttention; parameters and results as documented there."""

    def __init__(
        self,
        module: nn.MultiheadAttention,
        rewrite: SplitAttention,
        devices: Sequence[torch.device],
        pieces: Pieces,
        traffic: Traffic = UNCOUNTED,
    ) -> None:
        self._module, self._devices, self._traffic = module, tuple(devices), traffic
        by_name = {name: pieces(parameter_of(module, name)) for name in rewrite.splits}
        self._held = [
            holder_of({name.replace(".", "_"): by_name[name][card] for name in by_name}) for card in range(len(devices))
        ]
        firsts = [sum(rewrite.heads[:card]) for card in range(len(devices) + 1)]
        self._heads = [slice(first, last) for first, last in pairwise(firsts)]
        self._keyed = KeyedCards(module, devices)
        self._followed = Followed(module, rewrite)

    def slots(self) -> list[Slot]:
        """Where the pieces stand that the cards read."""
        return [Slot(held, name, card) for card, held in enumerate(self._held) for name in held._parameters]

    def __call__(
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
        """Attention over all heads, on the lead card; `is_causal` is a hint that the mask says better.

        Raises:
            ModelError: if a weight or a module in it was replaced after the split.
        """
        self._followed.follow()
        batched = query.dim() == 3
        mask, causal = self._mask(key, key_padding_mask, attn_mask, is_causal and not need_weights)
        with self._traffic.exchange(self._devices) as exchange:
            given = self._fork((query, key, value), exchange)
            masks: Sequence[Tensor | None] = (
                [None] * len(self._devices) if mask is None else self._masks(mask, exchange)
            )

            def on_card(card: int) -> list[Tensor]:
                exchange.land(card)
                inputs = [self._batch_first(copies[card], batched) for copies in given]
                results = self._on_card(card, inputs, masks[card], causal, need_weights)
                return [exchange.leave(card, result) for result in results if result is not None]

            contexts, *weights = zip(*self._keyed.run(on_card), strict=True)
            output = exchange.join(contexts)
            attention = torch.cat(exchange.gather(weights[0]), 1) if need_weights else None
        bias = self._module.out_proj.bias
        output = output if bias is None else output + bias
        if attention is not None and average_attn_weights:
            attention = attention.mean(1)
        return self._as_given(output, batched), attention if attention is None or batched else attention.squeeze(0)

    def _fork(self, tensors: Sequence[Tensor], exchange: Exchange) -> list[Sequence[Tensor]]:
        """Copies of each, by card; one that is given several times travels once."""
        copies = {id(tensor): tensor for tensor in tensors}
        forks = {key: exchange.fork(tensor) for key, tensor in copies.items()}
        return [forks[id(tensor)] for tensor in tensors]

    def _masks(self, mask: Tensor, exchange: Exchange) -> Sequence[Tensor]:
        """The mask of each card's heads."""
        if mask.shape[1] == 1:
            return exchange.fork(mask)
        return exchange.deal([mask[:, heads] for heads in self._heads])

    def _batch_first(self, tensor: Tensor, batched: bool) -> Tensor:
        if not batched:
            return tensor.unsqueeze(0)
        return tensor if self._module.batch_first else tensor.transpose(0, 1)

    def _as_given(self, output: Tensor, batched: bool) -> Tensor:
        if not batched:
            return output.squeeze(0)
        return output if self._module.batch_first else output.transpose(0, 1)

    def _mask(
        self, key: Tensor, padding: Tensor | None, mask: Tensor | None, causal: bool
    ) -> tuple[Tensor | None, bool]:
        """One additive mask [batch or 1, heads or 1, queries or 1, keys], or the kernel's own causal one, or none.

        Raises:
            RuntimeError: for the hint that a mask is causal without a mask, as torch does.
        """
        if causal and mask is None:
            raise RuntimeError("attn_mask is needed where is_causal says that it is causal")
        if causal and padding is None:
            return None, True
        total = None if mask is None else _additive(mask, key.dtype)
        if total is not None:
            total = total[None, None] if total.dim() == 2 else total.unflatten(0, (-1, self._module.num_heads))
        if padding is None:
            return total, False
        blocked = _additive(padding, key.dtype).reshape(-1, 1, 1, padding.shape[-1])
        return blocked if total is None else total + blocked, False

    def _on_card(
        self, card: int, inputs: Sequence[Tensor], mask: Tensor | None, causal: bool, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """This card's share of the output, and the weights of its heads."""
        size = self._module.head_dim
        held = self._held[card]._parameters
        weights, bias = parameter_of(self._held[card], "in_proj_weight").chunk(3), held.get("in_proj_bias")
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        query, key, value = (
            F.linear(tensor, weight, offset).unflatten(-1, (-1, size)).transpose(1, 2)
            for tensor, weight, offset in zip(inputs, weights, biases, strict=True)
        )
        dropped = self._module.dropout if self._module.training else 0.0
        attention = None
        if need_weights:
            scores = query * size**-0.5 @ key.transpose(-1, -2)
            attention = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropped)
            context = attention @ value
        else:
            context = F.scaled_dot_product_attention(query, key, value, mask, dropped, causal)
        return F.linear(
            context.transpose(1, 2).flatten(2), parameter_of(self._held[card], "out_proj_weight")
        ), attention


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """True means "not allowed" to nn.MultiheadAttention; a mask of numbers is added as it is."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
    return mask.to(dtype)
