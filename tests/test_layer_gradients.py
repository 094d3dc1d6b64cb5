from __future__ import annotations

import contextlib
import copy
import io

import pytest
import torch
import torch.nn.functional as F
from dattri.benchmark.models.logistic_regression import LogisticRegressionMnist
from dattri.benchmark.models.mlp import MLPMnist
from dattri.benchmark.models.resnet9.resnet9 import ResNet9
from torch import nn

from common.errors import UserError
from common.layer_capture import capture_layers
from common.layer_gradients import LayerwiseGradients, per_sample_gradients
from common.layer_layout import layer_layout, unsupported_parameters
from common.layer_products import matrix_shape, select_rows, write_products
from common.losses import cross_entropy
from common.records import Examples
from tests.reference_gradients import one_by_one_gradients

with contextlib.redirect_stdout(io.StringIO()):  # the import prints a warning where there is no GPU
    from dattri.benchmark.models.MusicTransformer.music_transformer import MusicTransformer

# An even kernel is what makes the border of padding="same" uneven; torch says that it costs a copy.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def last_token_loss(outputs, targets):
    return cross_entropy(outputs[:, -1], targets)


def every_token_loss(outputs, targets):
    return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").sum(1)


class TokenModel(nn.Module):
    """Looks tokens up, mixes them, and predicts with the embedding itself (one parameter in two roles)."""

    def __init__(self, tied: bool):
        super().__init__()
        self.tokens = nn.Embedding(11, 6, padding_idx=0)
        self.unused = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(6)
        self.out = nn.Linear(6, 11)
        if tied:
            self.out.weight = self.tokens.weight

    def forward(self, tokens):
        return self.out(self.norm(self.tokens(tokens).cumsum(1)).mean(1))


class RepeatedLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


class RepeatedConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.conv(torch.tanh(self.conv(x)))).mean((2, 3)))


class FoldedSequence(nn.Module):
    """Hands all tokens of all samples to a layer as if each were a sample."""

    def __init__(self, sample_first: bool):
        super().__init__()
        self.sample_first = sample_first
        self.hidden, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        folded = x if self.sample_first else x.transpose(0, 1)
        hidden = self.norm(self.hidden(folded.reshape(-1, 4))).reshape(*folded.shape[:2], 6)
        return hidden.sum(1 if self.sample_first else 0)


def small_conv_net():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 5, (2, 3), padding="same", dilation=(1, 2)),
        nn.Dropout(0.5),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 3, 3, padding=1, padding_mode="circular"),
        nn.Flatten(),
        nn.Linear(3 * 4 * 4, 3),
    )


def music_transformer(**options):
    with contextlib.redirect_stdout(io.StringIO()):
        return MusicTransformer(
            **dict(n_layers=1, d_model=32, num_heads=2, max_sequence=16, rpr=True, device="cpu", dim_feedforward=24)
            | options
        )


def classes(count, num_classes):
    return torch.randint(0, num_classes, (count,))


CASES = {
    "lr": lambda: (LogisticRegressionMnist(), cross_entropy, torch.randn(7, 28, 28), classes(7, 10)),
    "mlp": lambda: (MLPMnist(), cross_entropy, torch.randn(7, 784), classes(7, 10)),
    "conv": lambda: (small_conv_net(), cross_entropy, torch.randn(7, 2, 8, 8), classes(7, 3)),
    "large_patches": lambda: (
        nn.Sequential(nn.Conv2d(3, 2, 7, padding=3), nn.Flatten(), nn.Linear(2 * 64 * 64, 2)),
        cross_entropy,
        torch.randn(3, 3, 64, 64),
        classes(3, 2),
    ),
    "resnet9": lambda: (ResNet9(), cross_entropy, torch.randn(2, 3, 32, 32), classes(2, 2)),
    "transformer": lambda: (
        music_transformer(),
        last_token_loss,
        torch.randint(0, 300, (5, 16)),
        classes(5, 390),
    ),
    "transformer_every_token": lambda: (
        music_transformer(n_layers=2),
        every_token_loss,
        torch.randint(0, 300, (3, 16)),
        torch.randint(0, 390, (3, 16)),
    ),
    "transformer_short_sequence_as_long_as_the_batch": lambda: (
        music_transformer(),
        last_token_loss,
        torch.randint(0, 300, (3, 3)),
        classes(3, 390),
    ),
    "repeated_tokens": lambda: (TokenModel(False), cross_entropy, torch.randint(0, 4, (7, 9)), classes(7, 11)),
    "tied_weights": lambda: (TokenModel(True), cross_entropy, torch.randint(0, 4, (7, 9)), classes(7, 11)),
    "repeated_layer": lambda: (RepeatedLayer(), cross_entropy, torch.randn(7, 5), classes(7, 3)),
    "few_positions": lambda: (
        nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Flatten(), nn.Linear(60, 3)),
        cross_entropy,
        torch.randn(7, 2, 40),
        classes(7, 3),
    ),
    "repeated_conv": lambda: (RepeatedConv(), cross_entropy, torch.randn(7, 2, 5, 5), classes(7, 3)),
    "folded_sequence": lambda: (FoldedSequence(True), cross_entropy, torch.randn(7, 5, 4), classes(7, 6)),
}


def make_case(name):
    """Return (model in eval mode, loss, examples); batch norm has statistics and affine parameters worth the name."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model, loss, inputs, targets = CASES[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 2.0)
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval(), loss, Examples(inputs, targets)


def largest_relative_row_error(found, expected):
    return ((found.double() - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_one_by_one_backward_passes(name, dtype):
    model, loss, examples = make_case(name)
    expected = one_by_one_gradients(model, loss, examples.inputs, examples.targets)
    layout = layer_layout(model, loss, examples)
    model = model.to(dtype)
    inputs = examples.inputs.to(dtype) if examples.inputs.is_floating_point() else examples.inputs
    found = per_sample_gradients(model, loss, inputs, examples.targets, layout)
    assert found.dtype == dtype
    assert largest_relative_row_error(found, expected) < TOLERANCE[dtype]
    out = torch.full_like(found, 5.0)
    assert per_sample_gradients(model, loss, inputs, examples.targets, layout, out=out) is out
    assert torch.equal(out, found)


@pytest.mark.parametrize("share", [1.0, 0.3, 0.0], ids=["one_pass", "some_passes", "a_pass_a_row"])
@pytest.mark.parametrize(
    "name", ["mlp", "few_positions", "conv", "transformer", "tied_weights", "repeated_tokens", "repeated_conv"]
)
def test_gram_and_column_blocks_equal_the_multiplied_out_ones(name, share):
    if share == 0 and name in ("mlp", "transformer", "tied_weights"):
        pytest.skip("thousands of passes; the smaller models show the same")
    model, loss, examples = make_case(name)
    expected = one_by_one_gradients(model, loss, examples.inputs, examples.targets)
    whole = LayerwiseGradients(model, loss, examples, batch_size=3, dtype=torch.float64)
    memory_bytes = 1 + int(share * whole.kept_bytes)
    gradients = LayerwiseGradients(model, loss, examples, batch_size=3, dtype=torch.float64, memory_bytes=memory_bytes)
    assert whole.num_passes == 1
    assert (gradients.num_passes > 1) == (share < 1)
    assert (gradients.num_rows, gradients.dim) == expected.shape
    unit_gram, norms = gradients.gram(block_bytes=50_000)
    unit = expected / expected.norm(dim=1, keepdim=True)
    assert (norms / expected.norm(dim=1) - 1).abs().max() < 1e-10
    assert (unit_gram - unit @ unit.T).abs().max() < 1e-10
    assert torch.equal(unit_gram, unit_gram.T)
    starts, blocks = zip(*gradients.column_blocks(max_bytes=50_000), strict=True)
    widths = torch.tensor([block.shape[1] for block in blocks])
    assert list(starts) == [0, *widths.cumsum(0)[:-1].tolist()]
    assert largest_relative_row_error(torch.cat(blocks, dim=1), expected) < 1e-10


@pytest.mark.parametrize("name", ["few_positions", "conv", "repeated_tokens"])
def test_rows_selected_from_a_capture_give_those_rows_of_the_gradient(name):
    model, loss, examples = make_case(name)
    layout = layer_layout(model, loss, examples)
    for parameter, captures in capture_layers(model, loss, examples.inputs, examples.targets, layout).items():
        rows, cols = matrix_shape(model.get_parameter(parameter))
        whole = torch.empty(len(examples), rows * cols)
        part = torch.empty(len(examples), (rows - 1) * cols)
        write_products(captures, slice(0, rows), cols, whole)
        write_products([select_rows(c, slice(1, rows)) for c in captures], slice(0, rows - 1), cols, part)
        torch.testing.assert_close(part, whole[:, cols:])


def test_what_a_pass_keeps_stays_within_the_memory_asked_for():
    model, loss, examples = make_case("transformer")
    for memory_bytes in (100_000, 1_000_000):
        gradients = LayerwiseGradients(model, loss, examples, memory_bytes=memory_bytes)
        assert gradients.kept_bytes <= memory_bytes
        assert all(block.nbytes <= 20_000 for _, block in gradients.column_blocks(max_bytes=20_000))


def test_one_pass_is_kept_and_never_repeated():
    model, loss, examples = make_case("conv")
    gradients = LayerwiseGradients(model, loss, examples)
    first, _ = gradients.gram()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert torch.equal(gradients.gram()[0], first)


def test_norms_ten_orders_of_magnitude_apart_lose_no_accuracy():
    model, _, examples = make_case("mlp")
    scales = torch.logspace(-10, 0, len(examples), dtype=torch.float64)
    targets = torch.arange(len(examples))

    def scaled_loss(outputs, indices):
        return cross_entropy(outputs, indices % 10) * scales.to(outputs.dtype)[indices]

    expected = one_by_one_gradients(model, scaled_loss, examples.inputs, targets)
    scaled = Examples(examples.inputs, targets)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        unit_gram, norms = LayerwiseGradients(model, scaled_loss, scaled, dtype=dtype).gram()
        unit = expected / expected.norm(dim=1, keepdim=True)
        assert (norms / expected.norm(dim=1) - 1).abs().max() < tolerance
        assert (unit_gram - unit @ unit.T).abs().max() < tolerance


def test_a_zero_gradient_gives_a_zero_row_and_others_are_untouched():
    model, _, examples = make_case("mlp")
    examples = Examples(examples.inputs, torch.arange(len(examples)))

    def loss_of_all_but_the_second(outputs, indices):
        return cross_entropy(outputs, indices % 10) * (indices != 1)

    unit_gram, norms = LayerwiseGradients(model, loss_of_all_but_the_second, examples).gram()
    assert norms[1] == 0
    assert (unit_gram[1] == 0).all()
    assert (norms[[0, 2, 3, 4, 5, 6]] > 0).all()


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_non_finite_gradients_are_passed_on_for_their_sample_only(name):
    model, loss, examples = make_case(name)
    inputs = examples.inputs.clone()
    inputs[1] = float("inf")
    layout = layer_layout(model, loss, Examples(inputs, examples.targets))
    assert not layout.unsupported
    found = per_sample_gradients(model, loss, inputs, examples.targets, layout)
    finite = found.isfinite().all(dim=1)
    assert finite.tolist() == [index != 1 for index in range(len(inputs))]
    unit_gram, norms = LayerwiseGradients(model, loss, Examples(inputs, examples.targets)).gram()
    assert norms.isfinite().tolist() == finite.tolist()
    assert unit_gram[finite][:, finite].isfinite().all()


def test_frozen_parameters_have_no_columns():
    model, loss, examples = make_case("mlp")
    model.fc1.weight.requires_grad_(False)
    expected = one_by_one_gradients(model, loss, examples.inputs, examples.targets)
    gradients = LayerwiseGradients(model, loss, examples, dtype=torch.float64)
    found = torch.cat([block for _, block in gradients.column_blocks()], dim=1)
    assert gradients.dim == expected.shape[1]
    assert largest_relative_row_error(found, expected) < 1e-10


def test_the_model_is_left_as_it_was():
    model, loss, examples = make_case("conv")
    before = copy.deepcopy(model.state_dict())
    LayerwiseGradients(model, loss, examples, dtype=torch.float64).gram()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_single_sample_is_enough():
    model, loss, examples = make_case("conv")
    unit_gram, _ = LayerwiseGradients(model, loss, examples.subset(slice(0, 1))).gram()
    assert unit_gram.tolist() == [[pytest.approx(1.0, abs=1e-12)]]


class ScaledInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.out = nn.Parameter(torch.ones(4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(x * self.scale)


class PositionEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions, self.out = nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(torch.tanh(x + self.positions(torch.arange(5)))).mean(1)


class ChangesItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = x.clone()
        y = self.first(x)
        x.mul_(2)
        return self.out(y + x)


class MixesSamples(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.first(x)
        return self.out(hidden - hidden.mean(0))


class TakeLast(nn.Module):
    def forward(self, outputs):
        return outputs[0][:, -1]


UNSUPPORTED = {
    "elementwise_use": (ScaledInput, (4, 4), {"scale"}, "used by mul"),
    "no_sample_dimension": (PositionEmbedding, (4, 5, 4), {"positions.weight"}, "runs over samples"),
    "grouped_convolution": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 3)),
        (4, 4, 4, 4),
        {"0.weight", "0.bias"},
        "used by conv2d",
    ),
    "recurrent": (
        lambda: nn.Sequential(nn.GRU(4, 3, batch_first=True), TakeLast()),
        (4, 5, 4),
        {"0.weight_ih_l0", "0.weight_hh_l0", "0.bias_ih_l0", "0.bias_hh_l0"},
        "used by gru",
    ),
    "changes_its_input": (
        ChangesItsInput,
        (4, 4),
        {"first.weight", "first.bias", "out.weight", "out.bias"},
        "modified by an inplace operation|changed in place",
    ),
    "mixes_samples": (
        MixesSamples,
        (4, 4),
        {"first.weight", "out.weight"},
        "differs from a one-by-one backward pass",
    ),
    "tokens_folded_before_samples": (
        lambda: FoldedSequence(False),
        (4, 5, 4),
        {"hidden.weight", "norm.weight"},
        "differs from a one-by-one backward pass",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_is_refused_with_its_reason(name):
    make_model, shape, names, reason = UNSUPPORTED[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = make_model().eval()
        examples = Examples(torch.randn(shape), classes(shape[0], 3))
    assert names <= set(unsupported_parameters(model, cross_entropy, examples))
    with pytest.raises(UserError, match=reason):
        LayerwiseGradients(model, cross_entropy, examples)
