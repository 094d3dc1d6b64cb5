from __future__ import annotations

import pytest
import torch

from common.workloads.checks import by_module
from common.workloads.user_file import load_user_workload
from tests.workload_file import FORWARD, RECIPE, message, more, with_truth, write


def test_frozen_parameters_beside_trained_ones_are_fine(tmp_path):
    path = write(tmp_path, (FORWARD, "        self.hidden.requires_grad_(False)\n" + FORWARD))
    assert load_user_workload(path).name == "mine"


def test_parameters_that_layers_do_not_explain_are_fine(tmp_path):
    path = write(
        tmp_path,
        ("        self.out = ", "        self.scale = nn.Parameter(torch.ones(5))\n        self.out = "),
        (FORWARD, "        return self.out((self.hidden(inputs) * self.scale).tanh())"),
    )
    assert load_user_workload(path).name == "mine"


MISTAKES = {
    "no function": [("def make_workload", "def make_my_workload")],
    "not a function": [("def make_workload", "make_workload = 3\ndef other")],
    "parameters of make_workload": [("make_workload()", "make_workload(data)")],
    "returns nothing": [("    return Workload(", "    Workload(")],
    "name type": [('"mine"', "None")],
    "name characters": [('"mine"', '"my/model"')],
    "name dots": [('"mine"', '".."')],
    "name empty": [('"mine"', '""')],
    "name of a pair": [('"mine"', '"mnist_mlp"')],
    "loss missing": [("loss=loss", "loss=None")],
    "target sign": [more("    more = dict(target_sign=0)\n")],
    "target sign type": [more("    more = dict(target_sign=-1.0)\n")],
    "train not examples": [("train=Examples(inputs, targets)", "train=(inputs, targets)")],
    "number": [("train=Examples(inputs, targets)", "train=Examples(3.5, targets)")],
    "sparse": [("train=Examples(inputs, targets)", "train=Examples(inputs.to_sparse(), targets)")],
    "no inputs": [("train=Examples(inputs, targets)", "train=Examples({}, targets)")],
    "lengths of several": [("Examples(inputs, targets)", "Examples({'a': inputs, 'b': inputs[:3]}, targets)")],
    "other names": [("train=Examples(inputs, targets)", "train=Examples({'inputs': inputs}, targets)")],
    "complex": [("        self.out = ", "        self.w = nn.Parameter(torch.ones(5) * 1j)\n        self.out = ")],
    "empty train": [("train=Examples(inputs, targets)", "train=Examples(inputs[:0], targets[:0])")],
    "empty test": [("test=Examples(test_inputs, test_targets)", "test=Examples(test_inputs[:0], test_targets[:0])")],
    "lengths": [("train=Examples(inputs, targets)", "train=Examples(inputs, targets[:-1])")],
    "no rows": [("train=Examples(inputs, targets)", "train=Examples(inputs, torch.tensor(1))")],
    "other kind": [("test=Examples(test_inputs,", "test=Examples(test_inputs.double(),")],
    "device": [("train=Examples(inputs,", "train=Examples(inputs.to('meta'),")],
    "recipe type": [(RECIPE, "dict(epochs=2)")],
    "epochs": [("epochs=2", "epochs=0")],
    "batch size": [("batch_size=7", "batch_size=2.5")],
    "learning rate": [("learning_rate=0.1", "learning_rate=float('nan')")],
    "momentum": [("batch_size=7", "momentum=1.0")],
    "optimizer": [("batch_size=7", "optimizer='lion'")],
    "no module": [("make_model=Net", "make_model=lambda: loss")],
    "make_model raises": [("make_model=Net", "make_model=lambda: Net(7)")],
    "model device": [("make_model=Net", "make_model=lambda: Net().to('meta')")],
    "all frozen": [("make_model=Net", "make_model=lambda: Net().requires_grad_(False)")],
    "no parameters": [("make_model=Net", "make_model=nn.Identity")],
    "same model": [("make_model=Net", "make_model=lambda net=Net(): net")],
    "shared part": [("make_model=Net", "make_model=lambda part=nn.Linear(4, 4): nn.Sequential(part, Net())")],
    "forward": [("nn.Linear(4, 5)", "nn.Linear(6, 5)")],
    "loss raises": [("return F.cross_entropy(outputs,", "return F.cross_entropy(outputs.flatten(),")],
    "loss scalar": [(', reduction="none"', "")],
    "loss shape": [('reduction="none")', 'reduction="none")[:, None]')],
    "loss number": [('reduction="none")', 'reduction="none").sum().item()')],
    "loss type": [('reduction="none")', 'reduction="none").long()')],
    "loss not finite": [('reduction="none")', 'reduction="none") / 0')],
    "loss not finite, test": [("Examples(test_inputs,", "Examples(test_inputs * float('nan'),")],
    "loss random": [(FORWARD, FORWARD + " + torch.randn(3)")],
    "loss random at times": [(FORWARD, FORWARD + " + torch.rand(3) * (len(inputs) == 1)")],
    "model remembers": [(FORWARD, "        self.count = getattr(self, 'count', 0) + 1\n" + FORWARD + " * self.count")],
    "samples mix in the model": [("self.hidden(inputs)", "self.hidden(inputs - inputs.mean(dim=0))")],
    "samples mix in the loss": [('reduction="none")', 'reduction="none").mean().expand(len(outputs))')],
    "batch statistics": [("nn.Linear(4, 5)", "nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False))"),
                         ("BatchNorm1d(5, affine=False", "BatchNorm1d(5, track_running_stats=False")],
    "squeezed batch": [(FORWARD, FORWARD + ".squeeze()")],
    "unused": [("        self.out = ", "        self.spare = nn.Linear(2, 2)\n        self.out = ")],
    "backward": [(FORWARD, "        return self.out(self.hidden(inputs).relu_().mul_(2).add_(1))")],
    "training backward": [(FORWARD, "        hidden = self.hidden(inputs).tanh()\n"
                                    "        return self.out(hidden.mul_(2) if self.training else hidden)")],
    "detached": [("self.hidden(inputs)", "self.hidden(inputs).detach()")],
    "all detached": [(FORWARD, FORWARD + ".detach()")],
    "disabled in the model": [("    def forward", "    @torch.no_grad()\n    def forward")],
    "disabled in a layer": [(FORWARD, "        with torch.no_grad():\n            inputs = self.hidden(inputs)\n"
                                      "        return self.out(inputs)")],
    "disabled in the loss": [("def loss", "@torch.no_grad()\ndef loss")],
    "disabled for good": [(FORWARD, "        torch.set_grad_enabled(False)\n" + FORWARD)],
    "result kept": [(FORWARD, """        if not hasattr(self, "kept"):
            self.kept = self.hidden.bias.tanh()
        return self.out(self.hidden(inputs).tanh() + self.kept)""")],
    "training loss": [more("    more = dict(training_loss=loss)\n")],
    "training loss number": [more("    more = dict(training_loss=lambda o, t: loss(o, t).mean().item())\n")],
    "training loss detached": [more("    more = dict(training_loss=lambda o, t: loss(o, t).mean().detach())\n")],
    "training loss raises": [more("    more = dict(training_loss=lambda o, t: o @ t)\n")],
    "last batch": [("nn.Linear(4, 5)", "nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))"),
                   ("batch_size=7", "batch_size=8")],
    "correct type": [more("    more = dict(correct=lambda o, t: (o.argmax(1) == t).float())\n")],
    "correct share": [more("    more = dict(correct=lambda o, t: (o.argmax(1) == t).all())\n")],
    "correct number": [more("    more = dict(correct=lambda o, t: 0.5)\n")],
    "truth type": [more("    more = dict(ground_truth=(1, 2))\n")],
    "truth lists": [with_truth("torch.rand(8, 9, generator=torch.Generator().manual_seed(3))", "[[0.0]]")],
    "truth losses shape": [with_truth("torch.rand(8, 9,", "torch.rand(9, 8,")],
    "truth losses dimensions": [with_truth("torch.rand(8, 9,", "torch.rand(8,")],
    "truth losses finite": [with_truth("manual_seed(3))", "manual_seed(3)) / 0")],
    "truth index too large": [with_truth("[:16] for", "[:16] + 1 for"), ("range(8)", "range(50)"), ("(8, 9", "(50, 9")],
    "truth index negative": [with_truth("[:16] for", "[:16] - 34 for")],
    "truth index type": [with_truth("[:16] for", "[:16].float() for")],
    "truth index repeated": [with_truth("[:16] for", "[:16] * 0 for")],
}  # fmt: skip
MESSAGES = {
    "no function": "it has no function make_workload()",
    "not a function": "it has no function make_workload()",
    "parameters of make_workload": "make_workload() fails: TypeError: make_workload() missing 1 required",
    "returns nothing": "make_workload() returns None; it must return a common.records.Workload",
    "name type": "name None must be",
    "name characters": "name 'my/model' must be up to 80 letters, digits",
    "name dots": "name '..' must be",
    "name empty": "name '' must be",
    "name of a pair": "name 'mnist_mlp' is that of a built-in pair",
    "loss missing": "loss must be a function, got None",
    "target sign": "target_sign must be 1 or -1, got 0",
    "target sign type": "target_sign must be 1 or -1, got -1.0",
    "train not examples": "train must be common.records.Examples, got tuple",
    "number": "train.inputs must be a torch.Tensor, got float",
    "sparse": "train.inputs is a sparse_coo tensor; it must be dense, as .to_dense() makes it",
    "no inputs": "inputs must be a tensor, or a dict or tuple of tensors, the model's arguments",
    "lengths of several": "train has 3 inputs['b'] but 33 targets",
    "other names": "inputs differ in kind: inputs['inputs'], targets for train, inputs, targets for test",
    "complex": "parameter w is complex (complex64); influence is computed for real parameters: train "
    "torch.view_as_real of it, or freeze it with requires_grad_(False)",
    "empty train": "train is empty",
    "empty test": "test is empty",
    "lengths": "train has 33 inputs but 32 targets",
    "no rows": "train.targets must have one row a sample",
    "other kind": "inputs differ in kind: (N, 4) float32 for train, (N, 4) float64 for test",
    "device": "train.inputs must be on the CPU, got meta",
    "recipe type": "recipe must be a common.records.TrainingRecipe, or None for a trained model: dict",
    "epochs": "recipe: epochs must be an integer >= 1, got 0",
    "batch size": "recipe: batch_size must be an integer >= 1, got 2.5",
    "learning rate": "recipe: learning_rate must be a number > 0, got nan",
    "momentum": "recipe: momentum must be a number >= 0 and < 1, got 1.0",
    "optimizer": "recipe: optimizer must be one of sgd, adam, got 'lion'",
    "no module": "make_model() returns function; it must return a torch.nn.Module",
    "make_model raises": "make_model() fails, line ",
    "model device": "make_model() must return a model on the CPU; hidden.weight is on meta",
    "all frozen": "all 4 parameters of the model are frozen",
    "no parameters": "the model has no parameters",
    "same model": "make_model() returns the same hidden.weight each time",
    "shared part": "make_model() returns the same 0.weight each time",
    "forward": "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x4 and 6x5)",
    "loss raises": "loss on a batch of 2 fails, line ",
    "loss scalar": "loss returns shape () for a batch of 2; it must be (2,), one loss a sample; a mean or sum",
    "loss shape": "loss returns shape (2, 1) for a batch of 2",
    "loss number": "loss returns float; it must return a tensor",
    "loss type": "loss returns torch.int64; it must be floating point",
    "loss not finite": "the loss of training sample 0 is inf; it must be finite",
    "loss not finite, test": "the loss of test sample 0 is nan; it must be finite",
    "loss random": "the loss is random in eval mode",
    "loss random at times": "the loss is random in eval mode",
    "model remembers": "the loss differs from one forward pass to the next in eval mode, without random",
    "samples mix in the model": "depends on its batch mates",
    "samples mix in the loss": "in eval mode samples must not mix; where a loss compares samples, make each pair or",
    "batch statistics": "the model's forward pass on a batch of 1 fails",
    "squeezed batch": "loss returns shape () for a batch of 1",
    "unused": "no gradient of the loss reaches spare.*: unused, or detached",
    "backward": "the backward pass of a batch of 33 fails: RuntimeError: one of the variables needed for gradient",
    "training backward": "the backward pass in training mode on a batch of 2 fails: RuntimeError: one of the variables",
    "detached": "no gradient of the loss reaches hidden.*: unused, or detached",
    "all detached": "no gradient of the loss reaches hidden.*, out.*: unused",
    "disabled in the model": "reaches hidden.*, out.*: gradients are disabled on the",
    "disabled in a layer": "no gradient of the loss reaches hidden.*: gradients are disabled on the",
    "disabled in the loss": "reaches hidden.*, out.*: gradients are disabled on the",
    "disabled for good": "reaches hidden.*, out.*: gradients are disabled on the way",
    "result kept": "the gradient of hidden.bias is another once the model has run without gradients",
    "training loss": "training_loss must be a scalar, a tensor of shape (); got shape (2,)",
    "training loss number": "training_loss must be a scalar, a tensor of shape (); got float",
    "training loss detached": "training_loss must be finite and have a gradient",
    "training loss raises": "training_loss in training mode on a batch of 2 fails, line ",
    "last batch": "the mean loss in training mode on a batch of 1 (the last of 33 or 16 samples in batches of 8) fails",
    "correct type": "correct must return (2,) torch.bool for a batch of 2, got (2,) float32",
    "correct share": "correct must return (2,) torch.bool for a batch of 2, got () bool",
    "correct number": "correct must return (2,) torch.bool for a batch of 2, got float",
    "truth type": "ground_truth must be a common.records.GroundTruth or None, got tuple",
    "truth lists": "ground_truth.losses must be a torch.Tensor, got list",
    "truth losses shape": "ground_truth.losses must have shape (8, 9), one row a subset, one column a test sample; got",
    "truth losses dimensions": "ground_truth.losses must have shape (subset models, ...), got (8,)",
    "truth losses finite": "ground_truth.losses must be finite floating-point numbers",
    "truth index too large": "ground_truth.subset_indices must be in 0..32, one of them is 33",
    "truth index negative": "ground_truth.subset_indices must be in 0..32, one of them is -",
    "truth index type": "ground_truth.subset_indices must be (S, h) int64 with h >= 1, got (8, 16) float32",
    "truth index repeated": "ground_truth.subset_indices has a row with a repeated sample",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_it(tmp_path, mistake):
    with torch.enable_grad():  # which some of them leave disabled
        assert MESSAGES[mistake] in message(write(tmp_path, *MISTAKES[mistake]))


def test_a_cut_training_set_is_checked_for_a_last_batch_of_one_too(tmp_path):
    batch_norm = ("nn.Linear(4, 5)", "nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))")
    path = write(tmp_path, batch_norm)
    assert load_user_workload(path).name == "mine"
    assert "batch of 1 (the last of 29 or 14 samples in batches of 7) fails" in message(path, num_train=29)


def test_a_loss_that_knows_the_model_itself_is_no_sign_of_kept_results(tmp_path):
    net = ("def loss(outputs, targets):\n", "NET = Net()\n\n\ndef loss(outputs, targets):\n")
    decay = ('reduction="none")', 'reduction="none") + NET.hidden.weight.square().sum()')
    path = write(tmp_path, net, decay, ("make_model=Net", "make_model=lambda: NET"), (RECIPE, "None"))
    assert load_user_workload(path).name == "mine"


def test_parameters_of_modules_that_are_meant_as_a_whole_are_named_together():
    everyone = ["mask", "mask_token", "body.0.weight", "body.0.bias", "body.1.weight", "head.fc.weight", "head.fc.bias"]
    assert by_module(["mask", "body.0.weight"], everyone) == ["mask", "body.0.weight"]
    assert by_module(["mask", "body.0.weight", "body.0.bias"], everyone) == ["mask", "body.0.*"]
    assert by_module(["body.1.weight", *everyone[5:]], everyone) == ["body.1.weight", "head.*"]
    assert by_module(everyone, everyone) == ["mask", "mask_token", "body.*", "head.*"]
