from __future__ import annotations

import pytest
import torch

from common.workloads import models

IMAGE, COLOUR = torch.zeros(3, 1, 28, 28), torch.zeros(3, 3, 32, 32)
TOKENS = torch.zeros(2, 256, dtype=torch.int64)


@pytest.mark.parametrize(
    ("make_model", "num_parameters", "inputs", "output_shape"),
    [
        (models.make_lr, 7_850, IMAGE, (3, 10)),
        (models.make_mlp, 109_386, IMAGE, (3, 10)),
        (models.make_resnet9, 4_825_154, COLOUR, (3, 2)),
        (models.make_musictransformer, None, TOKENS, (2, 256, 390)),
    ],
    ids=["lr", "mlp", "resnet9", "musictransformer"],
)
def test_models_have_the_documented_size_and_outputs(make_model, num_parameters, inputs, output_shape, capsys):
    model = make_model().eval()
    with torch.no_grad():
        assert model(inputs).shape == output_shape
    if num_parameters is not None:
        assert sum(p.numel() for p in model.parameters()) == num_parameters
    assert all(p.requires_grad and p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("make_model", [models.make_lr, models.make_mlp, models.make_resnet9])
def test_initial_weights_depend_on_the_callers_seed_only(make_model):
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in make_model().parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_dropout_is_where_the_recipes_say():
    def rates(model):
        return {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.p > 0}

    assert rates(models.make_mlp()) == {0.1}
    assert rates(models.make_resnet9()) == set()
    assert 0.1 in rates(models.make_musictransformer())
