from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from common.gradients.layer_capture import Routes
from common.gradients.planning import compute_gradients, plan_gradients
from common.workloads.losses import cross_entropy
from common.workloads.records import Examples
from common.workloads.training import fresh_model
from tests.gradient_cases import CPU
from tests.reference_training import tiny_workload

transformers = pytest.importorskip("transformers")
FLOAT32 = 2e-6
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def tokens():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 50, (12, 8), generator=generator)
    mask = (torch.arange(8) < torch.randint(3, 9, (12, 1), generator=generator)).long()
    return ids, mask


def next_token_loss(outputs, ids):
    return F.cross_entropy(outputs.logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").mean(1)


def class_loss(outputs, targets):
    return cross_entropy(outputs.logits, targets)


def gpt2(attention):
    sizes = dict(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    config = transformers.GPT2Config(**sizes, attn_implementation=attention)
    return transformers.GPT2LMHeadModel(config), next_token_loss


def llama(attention):
    sizes = dict(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4)
    config = transformers.LlamaConfig(**sizes, num_key_value_heads=2, attn_implementation=attention)
    return transformers.LlamaForCausalLM(config), next_token_loss


def bert(attention):
    sizes = dict(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    config = transformers.BertConfig(**sizes, num_labels=3, attn_implementation=attention)
    return transformers.BertForSequenceClassification(config), class_loss


def lora(attention):
    peft = pytest.importorskip("peft")
    model, loss = gpt2(attention)
    adapters = peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    return peft.get_peft_model(model.to(torch.bfloat16), adapters), loss


def exact_rows(model, loss, examples):
    model, rows = model.double(), []
    parameters = [p for p in model.parameters() if p.requires_grad]
    for i in range(len(examples)):
        one = examples.subset([i])
        inputs = one.inputs if isinstance(one.inputs, dict) else {"input_ids": one.inputs}
        found = torch.autograd.grad(loss(model(**inputs), one.targets).sum(), parameters, materialize_grads=True)
        rows.append(torch.cat([gradient.flatten() for gradient in found]))
    return torch.stack(rows)


@pytest.mark.parametrize("masked", [False, True], ids=["ids", "ids_and_mask"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [gpt2, llama, bert, lora], ids=lambda make: make.__name__)
def test_models_of_transformers_go_layer_by_layer_and_are_right(make, attention, masked):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, loss = make(attention)
    ids, mask = tokens()
    targets = ids if loss is next_token_loss else ids[:, 0] % 3
    examples = Examples({"input_ids": ids, "attention_mask": mask} if masked else ids, targets)
    parts = [("training", examples)]
    plan = plan_gradients(tiny_workload(loss=loss), model.eval(), parts, 5, "recompute", torch.float32, CPU)
    assert plan.routes == Routes()
    found = compute_gradients(plan)
    rows = torch.cat([block.double() for _, block in found.unit_blocks()], dim=1) * found.norms[:, None]
    expected = exact_rows(model, loss, examples)
    assert rows.shape == expected.shape
    assert ((rows - expected).norm(dim=1) <= FLOAT32 * expected.norm(dim=1)).all()
    assert found.check.worst < 1e-5


def test_the_example_is_a_workload_whose_adapters_are_attributed(monkeypatch):
    pytest.importorskip("peft")
    path = Path(__file__).parents[2] / "examples" / "gpt2_text.py"
    spec = importlib.util.spec_from_file_location("gpt2_text", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "base", lambda: module.small_gpt2().state_dict())
    workload = module.make_workload()
    model = fresh_model(workload, 0)
    assert (len(workload.train), len(workload.test)) == (400, 100)
    assert set(workload.train.inputs) == {"input_ids", "attention_mask"}
    assert all("lora" in name for name, p in model.named_parameters() if p.requires_grad)
    few = workload.train.subset(slice(4))
    assert workload.loss(model.eval()(**few.inputs), few.targets).shape == (4,)
