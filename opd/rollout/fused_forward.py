"""The forward pass of a tiny Llama-family model, fused for sampling: the same arithmetic in a third of the calls.

In a tiny model the overhead between matrix products costs as much as the products. So neighbouring products are fused,
norm weights and the attention's scale are folded into the projection weights, and no module is called.
"""

from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from opd.rollout.kv_cache import SlotCache

FAMILIES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
LARGEST = 2**24  # weights; in a larger model calls take little of the time, and a copy of the weights costs memory


def can_fuse(model: PreTrainedModel) -> bool:
    """Whether `FusedForward` supports this model, and is worth it."""
    config = model.config
    return (
        type(model).__name__ in FAMILIES
        and type(model).__module__.startswith("transformers.models.")
        and model.dtype in (torch.float32, torch.float64)
        and sum(weight.numel() for weight in model.parameters()) <= LARGEST
        and all(kind == "full_attention" for kind in getattr(config, "layer_types", None) or ())
        and config.rope_parameters["rope_type"] == "default"
        and config.hidden_act == "silu"
    )


class FusedForward:
    """The forward pass of a model that `can_fuse`, with its current weights, at positions below `length`."""

    def __init__(self, model: PreTrainedModel, length: int):
        body: Any = model.model
        self.num_heads, self.num_key_heads = model.config.num_attention_heads, model.config.num_key_value_heads
        self.size, self.embedding = body.layers[0].self_attn.head_dim, body.embed_tokens.weight
        self.eps = self.embedding.new_tensor(model.config.rms_norm_eps * model.config.hidden_size)
        self.head_eps = self.embedding.new_tensor(model.config.rms_norm_eps * self.size)
        self.layers = [_Layer(layer, self.num_heads, self.num_key_heads) for layer in body.layers]
        self.head = _Linear(model.lm_head, norm=body.norm)
        cos, sin = body.rotary_emb(self.embedding, torch.arange(length, device=model.device)[None])
        self.turn = torch.complex(*(each[0, :, None, : self.size // 2].contiguous() for each in (cos, sin)))

    def __call__(
        self, tokens: Int[Tensor, "rows time"], positions: Int[Tensor, "rows time"], cache: SlotCache
    ) -> Float[Tensor, "rows vocab"]:
        """Logits after the last of `tokens`: the next token of each row, or its prompt; adds them to the cache."""
        rows, time = tokens.shape
        hidden = F.embedding(tokens.flatten(), self.embedding)
        angle = self.turn[positions.flatten()]
        bias = self._bias(cache, rows, time)
        for layer, store in zip(self.layers, cache.ensure_layers(len(self.layers)), strict=True):
            heads = layer.qkv(_unit(hidden, self.eps)).view(rows * time, -1, self.size)
            turn, value = heads[:, : -self.num_key_heads], heads[:, -self.num_key_heads :]
            if layer.head_norm is not None:
                turn = _unit(turn, self.head_eps).mul_(layer.head_norm)
            pairs = torch.view_as_complex(turn.view(rows * time, -1, self.size // 2, 2))
            turn = torch.view_as_real(pairs * angle).view(rows, time, -1, self.size)
            key, value = turn[:, :, self.num_heads :], value.view(rows, time, -1, self.size)
            keys, values = store.update(key.transpose(1, 2), value.transpose(1, 2))
            # The query heads that share a key head, at all times, are the rows of one product.
            query = (
                turn[:, :, : self.num_heads].view(rows, time, self.num_key_heads, -1, self.size).permute(0, 2, 3, 1, 4)
            )
            weight = torch.baddbmm(bias, query.reshape(bias.shape[0], -1, self.size), keys.flatten(0, 1).mT)
            mixed = torch.bmm(torch.softmax(weight, -1), values.flatten(0, 1))
            mixed = mixed.view(rows, self.num_heads, time, self.size).transpose(1, 2).reshape(rows * time, -1)
            layer.out.add_to(hidden, mixed)
            gate, up = layer.gate_up(_unit(hidden, self.eps)).chunk(2, dim=-1)
            layer.down.add_to(hidden, F.silu(gate).mul_(up))
        return self.head(_unit(hidden.view(rows, time, -1)[:, -1], self.eps))

    def _bias(self, cache: SlotCache, rows: int, time: int) -> Float[Tensor, "row_heads queries columns"]:
        """-inf where a query may not attend."""
        visible = cache.mask(time)
        columns = cache.window.end - cache.window.first + time
        bias = self.embedding.new_zeros(rows, time, columns)
        if visible is not None:
            bias.masked_fill_(~visible[:, None], -torch.inf)
        if time > 1:
            bias += torch.full_like(bias[0], -torch.inf).triu_(1 + columns - time)
            # A padding token attends to itself: without any key it would be NaN, and so would NaN times a weight of 0.
            bias.diagonal(columns - time, 1, 2).fill_(0)
        shape = rows, self.num_key_heads, self.num_heads // self.num_key_heads, time, columns
        return bias[:, None, None].expand(shape).reshape(rows * self.num_key_heads, -1, columns)


class _Layer:
    """The weights of one decoder layer."""

    def __init__(self, layer: Any, num_heads: int, num_key_heads: int):
        attention, mlp = layer.self_attn, layer.mlp
        self.head_norm = None
        query_scale = attention.scaling
        if hasattr(attention, "q_norm"):
            size = attention.head_dim
            query, key = attention.q_norm.weight * (query_scale * sqrt(size)), attention.k_norm.weight * sqrt(size)
            norms = torch.cat((query.repeat(num_heads), key.repeat(num_key_heads)))
            self.head_norm = _paired(norms, size).view(-1, size)
            query_scale = 1.0
        parts = attention.q_proj, attention.k_proj, attention.v_proj
        self.qkv = _Linear(*parts, norm=layer.input_layernorm, scales=(query_scale, 1.0, 1.0))
        turned = (num_heads + num_key_heads) * attention.head_dim
        for each in (self.qkv.weight, self.qkv.bias):
            if each is not None:
                each[:turned] = _paired(each[:turned], attention.head_dim)
        self.gate_up = _Linear(mlp.gate_proj, mlp.up_proj, norm=layer.post_attention_layernorm)
        self.out, self.down = _Linear(attention.o_proj), _Linear(mlp.down_proj)


class _Linear:
    """Linear maps of one input, side by side, each times its scale; with `norm`, of that norm of `_unit`'s output."""

    def __init__(self, *maps: Any, norm: Any = None, scales: tuple[float, ...] = (1.0, 1.0)):
        pairs = list(zip(maps, scales, strict=False))
        self.weight = torch.cat([each.weight * scale for each, scale in pairs])
        self.bias = None if maps[0].bias is None else torch.cat([each.bias * scale for each, scale in pairs])
        if norm is not None:
            self.weight *= norm.weight * sqrt(len(norm.weight))

    def __call__(self, inner: Float[Tensor, "rows input"]) -> Float[Tensor, "rows output"]:
        return F.linear(inner, self.weight, self.bias)

    def add_to(self, total: Float[Tensor, "rows output"], inner: Float[Tensor, "rows input"]) -> None:
        total.addmm_(inner, self.weight.mT)
        if self.bias is not None:
            total += self.bias


def _unit(hidden: Float[Tensor, "*rows size"], eps: Float[Tensor, ""]) -> Float[Tensor, "*rows size"]:
    """hidden / √(Σ hidden² + eps): with eps = size · the norm's own, its norm without its weight, over √size."""
    length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
    return hidden * torch.addcmul(eps, length, length).rsqrt_()


def _paired(rows: Float[Tensor, "rows *wide"], size: int) -> Float[Tensor, "rows *wide"]:
    """Interleaves the rows of every head: i and i + size / 2, which are rotated together, become adjacent."""
    return rows.unflatten(0, (-1, 2, size // 2)).transpose(1, 2).flatten(0, 2)
