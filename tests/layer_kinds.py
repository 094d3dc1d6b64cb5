"""One small model for each kind of layer, and each way of using a parameter, that plain autograd can differentiate."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from common.workloads.losses import cross_entropy
from common.workloads.records import Examples


def three_classes(values: Tensor) -> Tensor:
    """Return (B, 3) logits that depend on each of the values in their own way."""
    flat = torch.tanh(values).flatten(1)
    places = torch.arange(flat.shape[1] * 3, dtype=flat.dtype).view(-1, 3)
    return flat @ torch.cos(places**2)


class Through(nn.Module):
    """One layer."""

    def __init__(self, layer: nn.Module, call: Callable = lambda layer, x: layer(x)):
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x):
        return three_classes(self.call(self.layer, x))


class Weights(nn.Module):
    """Parameters of given shapes, used as a function says."""

    def __init__(self, use: Callable[..., Tensor], *shapes: tuple[int, ...]):
        super().__init__()
        self.use = use
        self.weights = nn.ParameterList(torch.randn(shape) * 0.5 for shape in shapes)

    def forward(self, x):
        return three_classes(self.use(x, *self.weights))


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.mixes = nn.MultiheadAttention(4, 2, batch_first=True, **options)
        self.query, self.out = nn.Parameter(torch.randn(2, 4)), nn.Linear(8, 3)

    def forward(self, x):
        mixed, _ = self.mixes(x, x, x)
        crossed, _ = self.mixes(self.query.expand(len(x), 2, 4), mixed, x)
        return self.out(crossed.flatten(1))


class PaddedEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(9, 4, padding_idx=0)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), 2)
        self.out = nn.Linear(4, 3)

    def forward(self, tokens):
        padding = tokens == 0
        hidden = self.encoder(self.tokens(tokens), src_key_padding_mask=padding)
        return self.out((hidden * ~padding[..., None]).sum(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], **options):
        super().__init__()
        self.layer = kind(4, 3, batch_first=True, **options)

    def forward(self, x):
        outputs, _ = self.layer(x)
        return three_classes(outputs)


class ConditionedTwice(nn.Module):
    """Runs a layer first without, then with derivatives."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        with torch.no_grad():
            guess = self.layer(x)
        return self.out(torch.tanh(self.layer(x + guess)))


class Stacked(nn.Module):
    """Mixture of all experts, whose weights are one tensor."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(4, 2), nn.Parameter(torch.randn(2, 4, 3))

    def forward(self, x):
        each = torch.einsum("bd,edf->bef", x, self.experts)
        return torch.einsum("be,bef->bf", self.gate(x).softmax(1), each)


def gru_with_state(layer: nn.GRU, x: Tensor) -> Tensor:
    return layer(x, torch.ones(2, len(x), 3, dtype=x.dtype) / 2)[0]


def _low_rank(x: Tensor, base: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return F.linear(x, base + 2 * (b @ a))


def _chunks(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return sum(F.linear(x, w, b) for w, b in zip(weight.chunk(2), bias.chunk(2), strict=True))


def _in_place_use(x: Tensor, scale: Tensor) -> Tensor:
    return x.clone().mul_(scale).add_(1)


def _written_into(x: Tensor, weight: Tensor) -> Tensor:
    whole = torch.zeros(6, 4, dtype=x.dtype)
    whole[1:4] = weight
    return F.linear(x, whole)


def _nothing_besides(x: Tensor, scale: Tensor, matrix: Tensor, vector: Tensor) -> Tensor:
    return torch.cat([x * scale, F.linear(x, matrix, vector)], 1)


def _per_sample_jacobian(x: Tensor, weight: Tensor) -> Tensor:
    return torch.func.vmap(lambda row: weight @ row)(x)


VECTORS, SEQUENCES, IMAGES = (6, 4), (6, 5, 4), (6, 4, 5, 5)


def _changed_through_a_view(x: Tensor, w: Tensor, scale: Tensor) -> Tensor:
    changed = w.clone()
    row = changed[0]
    row.mul_(scale)
    return x @ changed


LAYER_BY_LAYER: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: Through(nn.Conv1d(5, 6, 2, stride=2)), SEQUENCES),
    "conv1d_depthwise": (lambda: Through(nn.Conv1d(5, 10, 3, groups=5, padding="same")), SEQUENCES),
    "conv2d_grouped": (lambda: Through(nn.Conv2d(4, 6, 3, groups=2, padding=1)), IMAGES),
    "conv2d_of_a_single_image": (lambda: Through(nn.Conv2d(1, 3, 2), lambda f, x: f(x[:, None])), SEQUENCES),
    "conv2d_of_several_images": (
        lambda: Through(nn.Conv2d(1, 3, 2), lambda f, x: f(x.flatten(0, 1)[:, None]).view(len(x), -1)),
        IMAGES,
    ),
    "conv3d": (lambda: Through(nn.Conv3d(1, 3, 2, stride=(1, 2, 1)), lambda f, x: f(x[:, None])), IMAGES),
    "conv_transpose1d": (lambda: Through(nn.ConvTranspose1d(5, 3, 2, stride=2)), SEQUENCES),
    "conv_transpose2d": (lambda: Through(nn.ConvTranspose2d(4, 4, 3, stride=2, groups=2, output_padding=1)), IMAGES),
    "group_norm": (lambda: Through(nn.GroupNorm(2, 4)), IMAGES),
    "layer_norm_2d": (lambda: Through(nn.LayerNorm((5, 4))), SEQUENCES),
    "rms_norm": (lambda: Through(nn.RMSNorm(4)), SEQUENCES),
    "rms_norm_by_hand": (
        lambda: Weights(lambda x, w: w * x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt(), (4,)),
        SEQUENCES,
    ),
    "instance_norm": (lambda: Through(nn.InstanceNorm2d(4, affine=True)), IMAGES),
    "instance_norm_with_statistics": (
        lambda: Through(nn.InstanceNorm1d(5, affine=True, track_running_stats=True)),
        SEQUENCES,
    ),
    "prelu": (lambda: Through(nn.PReLU(5)), SEQUENCES),
    "bilinear": (lambda: Through(nn.Bilinear(4, 4, 3), lambda f, x: f(x[:, 0], x[:, 1])), SEQUENCES),
    "attention": (lambda: Attention(), SEQUENCES),
    "attention_with_extra_keys": (lambda: Attention(add_bias_kv=True, kdim=4), SEQUENCES),
    "transformer_encoder": (
        lambda: Through(
            nn.TransformerEncoder(
                nn.TransformerEncoderLayer(4, 2, 6, norm_first=True, batch_first=True), 2, enable_nested_tensor=False
            )
        ),
        SEQUENCES,
    ),
    "transformer_decoder": (
        lambda: Through(nn.TransformerDecoderLayer(4, 2, 6, batch_first=True), lambda f, x: f(x, x[:, :2])),
        SEQUENCES,
    ),
    "rnn": (lambda: Recurrent(nn.RNN), SEQUENCES),
    "rnn_relu": (lambda: Recurrent(nn.RNN, nonlinearity="relu", bias=False), SEQUENCES),
    "gru": (lambda: Recurrent(nn.GRU, num_layers=2, bidirectional=True), SEQUENCES),
    "gru_with_state": (lambda: Through(nn.GRU(4, 3, 2, batch_first=True), gru_with_state), SEQUENCES),
    "lstm": (lambda: Recurrent(nn.LSTM, num_layers=2, dropout=0.5), SEQUENCES),
    "lstm_with_projection": (
        lambda: Through(
            nn.LSTM(4, 5, proj_size=3, bidirectional=True), lambda f, x: f(x.transpose(0, 1))[0].transpose(0, 1)
        ),
        SEQUENCES,
    ),
    "gru_cell": (lambda: Through(nn.GRUCell(4, 3)), VECTORS),
    "weight_norm": (lambda: Through(parametrizations.weight_norm(nn.Linear(4, 6))), VECTORS),
    "spectral_norm": (lambda: Through(parametrizations.spectral_norm(nn.Linear(4, 6))), VECTORS),
    "orthogonal": (lambda: Through(parametrizations.orthogonal(nn.Linear(4, 6))), VECTORS),
    "scale_and_shift": (lambda: Weights(lambda x, a, b: x * a - b / 3, (4,), (5, 1)), SEQUENCES),
    "position_table": (lambda: Weights(lambda x, p: x + p[: x.shape[1]], (7, 4)), SEQUENCES),
    "tied_transpose": (lambda: Weights(lambda x, w: torch.tanh(x @ w.t()) @ w, (6, 4)), SEQUENCES),
    "tied_transposed_twice": (
        lambda: Weights(lambda x, w: F.linear(torch.tanh(x @ w.T), w.mT[:, :].T.transpose(0, 1)), (6, 4)),
        SEQUENCES,
    ),
    "first_rows": (lambda: Weights(lambda x, w: F.linear(x, w[:3]), (6, 4)), VECTORS),
    "last_rows_transposed": (lambda: Weights(lambda x, w: x @ w[2:].t(), (6, 4)), VECTORS),
    "chunks": (
        lambda: Weights(_chunks, (6, 4), (6,)),
        VECTORS,
    ),
    "matmul": (lambda: Weights(lambda x, w, b: x @ w + b, (4, 6), (6,)), SEQUENCES),
    "complex_weight": (
        lambda: Weights(
            lambda x, w, v: torch.view_as_real(torch.complex(x, x) @ torch.complex(w, v)).flatten(1), (4, 3), (4, 3)
        ),
        VECTORS,
    ),
    "changed_through_a_view": (lambda: Weights(_changed_through_a_view, (4, 6), (6,)), VECTORS),
    "mm_by_name": (lambda: Weights(lambda x, w: torch.mm(x, mat2=w), (4, 6)), VECTORS),
    "one_bias_for_all": (lambda: Weights(lambda x, w, b: F.linear(x, w, b), (6, 4), (1,)), SEQUENCES),
    "matmul_from_the_left": (lambda: Weights(lambda x, w: w @ x, (3, 5)), SEQUENCES),
    "addmm": (
        lambda: Weights(lambda x, w, b: torch.addmm(b, x.view(-1, 4), w).view(len(x), 5, 6), (4, 6), (6,)),
        SEQUENCES,
    ),
    "addmm_scaled": (lambda: Weights(lambda x, w, b: torch.addmm(b, x, w, beta=2, alpha=3), (4, 6), (1, 6)), VECTORS),
    "baddbmm": (
        lambda: Weights(lambda x, w, b: torch.baddbmm(b, x, w.expand(len(x), 4, 3)), (4, 3), (5, 3)),
        SEQUENCES,
    ),
    "einsum_positions": (lambda: Weights(lambda x, w: torch.einsum("btc,cr->brt", x, w), (4, 6)), SEQUENCES),
    "einsum_heads": (lambda: Weights(lambda x, w: torch.einsum("btc,chd->bthd", [x, w]), (4, 2, 3)), SEQUENCES),
    "einsum_joined_heads": (
        lambda: Weights(lambda x, w: torch.einsum("bthd,hdc->btc", x.view(*x.shape[:2], 2, 2), w), (2, 2, 3)),
        SEQUENCES,
    ),
    "einsum_per_position": (lambda: Weights(lambda x, w: torch.einsum("btc,tcr->btr", x, w), (5, 4, 3)), SEQUENCES),
    "einsum_of_three": (
        lambda: Weights(lambda x, w, u: torch.einsum("btc,cr,rs->bts", x, w, u), (4, 2), (2, 3)),
        SEQUENCES,
    ),
    "einsum_ellipsis": (lambda: Weights(lambda x, w: torch.einsum("...c,rc->...r", x, w), (6, 4)), SEQUENCES),
    "stacked_experts": (Stacked, VECTORS),
    "low_rank_update": (lambda: Weights(_low_rank, (6, 4), (2, 4), (6, 2)), SEQUENCES),
    "written_into_zeros": (lambda: Weights(_written_into, (3, 4)), SEQUENCES),
    "concatenated_token": (
        lambda: Weights(lambda x, t: torch.cat([t.expand(len(x), 1, 4), x], 1).cumsum(1), (1, 1, 4)),
        SEQUENCES,
    ),
    "where": (lambda: Weights(lambda x, t: torch.where(x > 0, x, t), (4,)), SEQUENCES),
    "temperature": (lambda: Weights(lambda x, t: x * t.exp() + t, ()), VECTORS),
    "without_entries": (lambda: Weights(_nothing_besides, (4,), (0, 4), (0,)), VECTORS),
    "softmax_of_a_parameter": (lambda: Weights(lambda x, t: x @ t.softmax(0), (4, 3)), VECTORS),
    "conditioned_twice": (ConditionedTwice, VECTORS),
    "lstm_cell": (lambda: Through(nn.LSTMCell(4, 3), lambda f, x: torch.cat(f(x), 1)), VECTORS),
    "rnn_cell": (lambda: Through(nn.RNNCell(4, 3, nonlinearity="relu")), VECTORS),
}
"""Name -> (makes the model, shape of its float inputs); every parameter is followed layer by layer."""

BY_VMAP = {
    "in_place_use": (lambda: Weights(_in_place_use, (4,)), VECTORS),
    "inside_a_transform": (lambda: Weights(_per_sample_jacobian, (3, 4)), VECTORS),
}
"""Uses that cannot be followed, in models that vmap can run."""

LOOKUPS = {
    "embedding": lambda: Through(nn.Embedding(9, 3, padding_idx=0)),
    "embedding_by_frequency": lambda: Through(nn.Embedding(9, 3, scale_grad_by_freq=True)),
    "sparse_embedding": lambda: Through(nn.Embedding(9, 3, sparse=True)),
    "embedding_bag": lambda: Through(nn.EmbeddingBag(9, 3)),
    "embedding_bag_with_padding": lambda: Through(nn.EmbeddingBag(9, 3, padding_idx=0, mode="sum")),
    "sparse_embedding_bag": lambda: Through(nn.EmbeddingBag(9, 3, mode="sum", sparse=True)),
    "sparse_lookup": lambda: Weights(lambda x, w: torch.embedding(w, x, sparse=True), (9, 3)),
    "indexed_table": lambda: Weights(lambda x, w: w[x], (9, 3)),
    "padded_encoder": PaddedEncoder,
}
"""Models of (6, 5) tokens 0..8; every parameter is followed layer by layer."""


def make_kind(name: str) -> tuple[nn.Module, Examples]:
    """Return a model in eval mode and samples of three classes for it."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if name in LOOKUPS:
            model, inputs = LOOKUPS[name](), torch.randint(0, 9, (6, 5))
        else:
            make_model, shape = (LAYER_BY_LAYER | BY_VMAP)[name]
            model, inputs = make_model(), torch.randn(shape)
        for parameter in model.parameters():
            if parameter.ndim < 2 or not parameter.any():
                nn.init.uniform_(parameter, 0.3, 1.2)
        return model.eval(), Examples(inputs, torch.randint(0, 3, (6,)))


loss = cross_entropy
