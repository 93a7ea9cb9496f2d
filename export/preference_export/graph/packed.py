"""The packed decoder: a sequence classifier that reads token ids joined end to end, without padding.

Parameters carry the names and layouts of the Hugging Face checkpoint, so that weights are found by name. GEMMs run in
the dtype of their weights; the residual stream, norms, rotary positions, soft-cap and softmax are float32. It knows
nothing of files.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from preference_export.checkpoint.architecture import Activation, Architecture

#: Parameters that are computed from the configuration and not read from the checkpoint, and where it has them.
COMPUTED = {
    "rotary.inverse_frequencies": "inverse_frequencies",
    "local_rotary.inverse_frequencies": "local_inverse_frequencies",
}
#: Added to the score of a key that is hidden. Finite, so that a scan for values that are not finite stays of use.
HIDDEN = -1e30


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a pack are, as indices.

    `padded` `[sequences, longest]`: the packed index of each padded slot (slots past the end repeat the last token).
    `packed` `[tokens]`: the flat padded slot of each token. `last` `[sequences]`: each sequence's last token.
    `position` `[tokens]` within its sequence. Masks are added to scores, and hide keys that come later or lie before a
    layer's window: `unseen` `[longest * share, longest]` from queries of all tokens, once per head of a group;
    `outside` `[sequences, 1, 1, longest]` from last tokens.
    """

    padded: Tensor
    packed: Tensor
    last: Tensor
    position: Tensor
    unseen: Tensor
    outside: Tensor


def packings_of(
    input_ids: Tensor, lengths: Tensor, max_seqlen: Tensor, share: int, window: int | None
) -> tuple[Packing, Packing]:
    """Indices of a pack whose attention has `share` heads per group: for layers that see all, and that have the window.

    Of `input_ids` and `max_seqlen` only the shapes are read.
    """
    length = lengths.long()
    end = length.cumsum(0)
    start = end - length
    token = torch.arange(input_ids.shape[0], device=end.device)
    column = torch.arange(max_seqlen.shape[0], device=end.device)
    sequence = (token[:, None] >= end[None, :]).long().sum(1)
    position = token - start.index_select(0, sequence)
    whole = Packing(
        padded=torch.minimum(start[:, None] + column, end[:, None] - 1),
        packed=sequence * max_seqlen.shape[0] + position,
        last=end - 1,
        position=position,
        unseen=mask(column[None, :] > column[:, None].expand(-1, share).reshape(-1, 1)),
        outside=mask(column[None, :] >= length[:, None])[:, None, None, :],
    )
    if window is None:
        return whole, whole
    # No difference of positions is made for each score: as INT64 it would take twice the mask's memory.
    key, query = column[None, :], column[:, None].expand(-1, share).reshape(-1, 1)
    return whole, replace(
        whole,
        unseen=mask((key > query) | (key <= query - window)),
        outside=mask((key >= length[:, None]) | (key < length[:, None] - window))[:, None, None, :],
    )


def mask(hidden: Tensor) -> Tensor:
    """What is added to the scores of keys, given which are hidden."""
    return torch.zeros_like(hidden, dtype=torch.float32).masked_fill(hidden, HIDDEN)


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of `x` `[n, features]` at `index` of any shape; written as a look-up so that it exports as one `Gather`."""
    return F.embedding(index, x)


class RmsNorm(nn.Module):
    """Root-mean-square norm in float32; `offset` is added to the weight."""

    def __init__(self, features: int, epsilon: float, offset: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(features))
        self.epsilon, self.offset = epsilon, offset

    def forward(self, x: Tensor) -> Tensor:
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return normed * (self.weight + self.offset if self.offset else self.weight)


class Gemm(nn.Module):
    """`x @ weight.T + bias`, multiplied in the dtype of the weight, float32 in and out."""

    def __init__(self, inputs: int, outputs: int, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        product = F.linear(x.to(self.weight.dtype), self.weight).float()
        return product if self.bias is None else product + self.bias


class Rotary(nn.Module):
    """Cosine and sine `[rows, head_dim / 2]` of the rotary angle at each position `[rows]`."""

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.inverse_frequencies = nn.Parameter(torch.empty(frequencies))

    def forward(self, position: Tensor) -> tuple[Tensor, Tensor]:
        angle = position[:, None].float() * self.inverse_frequencies
        return angle.cos(), angle.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding of `x` `[rows, heads, head_dim]`, halves paired as in `transformers` (`rotate_half`)."""
    first, second = x.chunk(2, dim=-1)
    cosine, sine = cosine[:, None, :], sine[:, None, :]
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


class Attention(nn.Module):
    """Grouped-query attention, kept decomposed: no runtime's fused kernel has Gemma-2's soft-cap right everywhere."""

    def __init__(self, a: Architecture, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.groups, self.head_dim = a.heads, a.key_value_heads, a.head_dim
        self.scale, self.soft_cap, self.dtype = a.attention_scale, a.attention_soft_cap, dtype
        wide, narrow = a.heads * a.head_dim, a.key_value_heads * a.head_dim
        self.q_proj = Gemm(a.hidden_size, wide, a.query_key_value_bias, dtype)
        self.k_proj = Gemm(a.hidden_size, narrow, a.query_key_value_bias, dtype)
        self.v_proj = Gemm(a.hidden_size, narrow, a.query_key_value_bias, dtype)
        self.o_proj = Gemm(wide, a.hidden_size, a.attention_output_bias, dtype)
        norms = (
            RmsNorm(a.head_dim, a.norm_epsilon, a.norm_offset) if a.query_key_norms else nn.Identity() for _ in "qk"
        )
        self.q_norm, self.k_norm = norms

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], p: Packing) -> Tensor:
        """Every token attends to itself and what it sees before it in its sequence: `[tokens, hidden]` in and out.

        `p.unseen` is all it takes: slots past a sequence's end come after every token that is read back.
        """
        sequences, longest = p.padded.shape
        share = self.heads // self.groups
        query = self.q_norm(self.q_proj(x).reshape(-1, self.heads, self.head_dim))
        query = rotate(query, *rotary) * self.scale
        query = rows(query.flatten(1), p.padded).reshape(sequences, longest, self.groups, share, self.head_dim)
        query = query.permute(0, 2, 1, 3, 4).reshape(sequences, self.groups, longest * share, self.head_dim)
        context = self._attend(query, *self._keys_values(x, rotary, p), p.unseen)
        context = context.reshape(sequences, self.groups, longest, share, self.head_dim).permute(0, 2, 1, 3, 4)
        context = context.reshape(sequences * longest, self.heads * self.head_dim)
        attended: Tensor = self.o_proj(rows(context, p.packed))
        return attended

    def last(self, x: Tensor, rotary: tuple[Tensor, Tensor], p: Packing) -> Tensor:
        """Only each sequence's last token attends: `[tokens, hidden]` in, `[sequences, hidden]` out."""
        cosine, sine = (rows(angles, p.last) for angles in rotary)
        query = self.q_norm(self.q_proj(rows(x, p.last)).reshape(-1, self.heads, self.head_dim))
        query = rotate(query, cosine, sine) * self.scale
        query = query.reshape(-1, self.groups, self.heads // self.groups, self.head_dim)
        context = self._attend(query, *self._keys_values(x, rotary, p), p.outside)
        attended: Tensor = self.o_proj(context.flatten(1))
        return attended

    def _keys_values(self, x: Tensor, rotary: tuple[Tensor, Tensor], p: Packing) -> tuple[Tensor, Tensor]:
        """Keys `[sequences, groups, head_dim, longest]`, values `[sequences, groups, longest, head_dim]`."""
        key = self.k_norm(self.k_proj(x).reshape(-1, self.groups, self.head_dim))
        key = rotate(key, *rotary).flatten(1)
        value = self.v_proj(x)
        shape = (*p.padded.shape, self.groups, self.head_dim)
        key, value = rows(key, p.padded).reshape(shape), rows(value, p.padded).reshape(shape)
        return key.permute(0, 2, 3, 1), value.permute(0, 2, 1, 3)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor) -> Tensor:
        """`[sequences, groups, rows, head_dim]` for queries of that shape; `hidden` is added to their scores."""
        scores = torch.matmul(query.to(self.dtype), key.to(self.dtype)).float()
        if self.soft_cap is not None:
            scores = torch.tanh(scores / self.soft_cap) * self.soft_cap
        return torch.matmul((scores + hidden).softmax(-1).to(self.dtype), value.to(self.dtype)).float()


class GatedMlp(nn.Module):
    """`down(activation(gate(x)) * up(x))`."""

    def __init__(self, a: Architecture, dtype: torch.dtype) -> None:
        super().__init__()
        self.activation: Activation = a.activation
        self.gate_proj = Gemm(a.hidden_size, a.intermediate_size, a.mlp_bias, dtype)
        self.up_proj = Gemm(a.hidden_size, a.intermediate_size, a.mlp_bias, dtype)
        self.down_proj = Gemm(a.intermediate_size, a.hidden_size, a.mlp_bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        gate = F.silu(gate) if self.activation == "silu" else F.gelu(gate, approximate="tanh")
        product: Tensor = self.down_proj(gate * self.up_proj(x))
        return product


class DecoderLayer(nn.Module):
    """Attention and MLP, each with its norms, around the residual stream."""

    def __init__(self, a: Architecture, dtype: torch.dtype) -> None:
        super().__init__()
        self.self_attn = Attention(a, dtype)
        self.mlp = GatedMlp(a, dtype)
        norms = (RmsNorm(a.hidden_size, a.norm_epsilon, a.norm_offset) for _ in range(4))
        self.input_layernorm, self.post_attention_layernorm = next(norms), next(norms)
        if a.post_norms:
            self.pre_feedforward_layernorm, self.post_feedforward_layernorm = next(norms), next(norms)
        self.post_norms = a.post_norms

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], p: Packing) -> Tensor:
        """All tokens: `[tokens, hidden]` in and out."""
        return self._rest(x, self.self_attn(self.input_layernorm(x), rotary, p))

    def last(self, x: Tensor, rotary: tuple[Tensor, Tensor], p: Packing) -> Tensor:
        """Last tokens only, which is all that the final layer is asked for: `[sequences, hidden]` out."""
        return self._rest(rows(x, p.last), self.self_attn.last(self.input_layernorm(x), rotary, p))

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        if self.post_norms:
            x = x + self.post_attention_layernorm(attended)
            change: Tensor = self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        else:
            x = x + attended
            change = self.mlp(self.post_attention_layernorm(x))
        return x + change


#: Cosine and sine of each token's position, and the pack: what a layer is told of where tokens are and what they see.
View = tuple[tuple[Tensor, Tensor], Packing]


class Decoder(nn.Module):
    """Embedding, layers and final norm: from token ids to one hidden state per sequence."""

    def __init__(self, a: Architecture, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(a.vocabulary, a.hidden_size, dtype=dtype)
        self.layers = nn.ModuleList(DecoderLayer(a, dtype) for _ in range(a.layers))
        self.norm = RmsNorm(a.hidden_size, a.norm_epsilon, a.norm_offset)
        self.embedding_scale, self.sliding = a.embedding_scale, a.sliding

    def forward(self, input_ids: Tensor, whole: View, local: View) -> Tensor:
        """Layers that slide have the view `local`, the others `whole`."""
        x = self.embed_tokens(input_ids).float()
        if self.embedding_scale != 1.0:
            x = x * self.embedding_scale
        views = [local if slides else whole for slides in self.sliding]
        for layer, view in zip(self.layers[:-1], views[:-1], strict=True):
            x = layer(x, *view)
        final = self.layers[-1]
        assert isinstance(final, DecoderLayer)
        pooled: Tensor = self.norm(final.last(x, *views[-1]))
        return pooled


class PackedClassifier(nn.Module):
    """Logits FP32 `[sequences, labels]` of sequences packed end to end.

    `dtype` is that of embedding and GEMM weights; norms, biases and the score head stay float32. The last token of each
    sequence is pooled, by `lengths`. Hugging Face pools the last token that is not the pad id, which is another one
    where a text ends in the pad token (pad = eos).
    """

    def __init__(self, architecture: Architecture, labels: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.share = architecture.heads // architecture.key_value_heads
        self.window = architecture.sliding_window
        frequencies = len(architecture.inverse_frequencies)
        self.rotary = Rotary(frequencies)
        self.local_rotary = None if architecture.local_inverse_frequencies is None else Rotary(frequencies)
        self.model = Decoder(architecture, dtype)
        self.score = Gemm(architecture.hidden_size, labels, bias=False, dtype=torch.float32)

    def forward(self, input_ids: Tensor, lengths: Tensor, max_seqlen: Tensor) -> Tensor:
        """`input_ids` INT32 `[tokens]`, `lengths` INT32 `[sequences]`, `max_seqlen` `[longest]` (its shape)."""
        whole, local = packings_of(input_ids, lengths, max_seqlen, self.share, self.window)
        rotary = self.rotary(whole.position)
        local_rotary = rotary if self.local_rotary is None else self.local_rotary(whole.position)
        pooled = self.model(input_ids, (rotary, whole), (local_rotary, local))
        logits: Tensor = self.score(pooled)
        return logits
