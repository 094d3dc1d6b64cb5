from __future__ import annotations

import pytest
import torch

from common.foundations.errors import UserError
from common.workloads.names import DATASET_NAMES, MODEL_NAMES, PAIR_NAMES, check_pair
from common.workloads.pairs import DOWNLOADED, EMBEDDED, PAIRS, load_workload
from common.workloads.records import Dataset, Examples


def toy_data(num_train=20, num_test=6):
    def part(count):
        return Examples(torch.randn(count, 1, 28, 28), torch.arange(count) % 10)

    return Dataset(part(num_train), part(num_test))


@pytest.fixture(scope="module")
def tiny_mnist():
    return load_workload("mnist", "lr", num_train=7)


def test_there_are_eight_pairs_and_their_names_are_the_choices():
    assert set(PAIRS) == {
        ("mnist", "lr"),
        ("mnist", "mlp"),
        ("mnist60k", "lr"),
        ("mnist60k", "mlp"),
        ("cifar2", "resnet9"),
        ("photos2", "resnet9"),
        ("maestro", "musictransformer"),
        ("chorales", "musictransformer"),
    }
    assert list(PAIRS) == list(PAIR_NAMES)
    assert set(DATASET_NAMES) == {dataset for dataset, _ in PAIRS}
    assert set(MODEL_NAMES) == {model for _, model in PAIRS}


@pytest.mark.parametrize(("dataset", "model"), [("mnist", "resnet9"), ("chorales", "mlp"), ("cifar2", "lr")])
def test_a_pair_that_does_not_exist_is_one_line_that_lists_those_that_do(dataset, model):
    for refuse in (check_pair, load_workload):
        with pytest.raises(UserError, match=f"--dataset {dataset} --model {model}; there are: mnist") as error:
            refuse(dataset, model)
        assert "\n" not in str(error.value)


def test_num_train_keeps_the_first_training_samples_and_all_test_samples(tiny_mnist):
    data = toy_data()
    workload = load_workload("mnist", "mlp", num_train=7, data=data)
    assert torch.equal(workload.train.inputs, data.train.inputs[:7])
    assert torch.equal(workload.test.inputs, data.test.inputs)
    assert workload.name == "mnist_mlp"
    assert (len(tiny_mnist.train), len(tiny_mnist.test)) == (7, 500)
    assert len(load_workload("mnist", "mlp", data=data).train) == 20


def test_more_training_samples_than_there_are_is_one_line_with_both_numbers():
    with pytest.raises(UserError, match="--num_train 21 exceeds the 20 training samples of mnist"):
        load_workload("mnist", "lr", num_train=21, data=toy_data())


def test_the_loss_is_the_cross_entropy_of_each_sample(tiny_mnist):
    torch.manual_seed(0)
    model = tiny_mnist.make_model()
    outputs = model(tiny_mnist.train.inputs)
    probabilities = outputs.double().softmax(1)[range(7), tiny_mnist.train.targets]
    torch.testing.assert_close(
        tiny_mnist.loss(outputs, tiny_mnist.train.targets).double(), -probabilities.log(), rtol=1e-5, atol=0
    )
    assert tiny_mnist.correct(outputs, outputs.argmax(1)).all()
    assert not tiny_mnist.correct(outputs, outputs.argmin(1)).any()


def test_recipes_are_those_of_the_published_benchmarks():
    lr, mlp = (load_workload("mnist", model, data=toy_data()).recipe for model in ("lr", "mlp"))
    assert (lr.epochs, lr.batch_size, lr.optimizer) == (20, 64, "sgd")
    assert (mlp.epochs, mlp.batch_size, mlp.optimizer, mlp.momentum) == (50, 64, "sgd", 0.9)


def test_datasets_and_their_names_belong_together():
    assert {*EMBEDDED, *DOWNLOADED} == set(DATASET_NAMES)
    assert not EMBEDDED.keys() & DOWNLOADED.keys()


@pytest.mark.parametrize(("dataset", "model"), [("cifar2", "resnet9"), ("maestro", "musictransformer")])
def test_a_downloaded_dataset_without_a_folder_is_refused(dataset, model):
    with pytest.raises(ValueError, match=f"{dataset} is downloaded: it needs a data_dir"):
        load_workload(dataset, model)


def test_only_maestro_stores_minus_the_loss():
    signs = {pair: load_workload(*pair, data=toy_data()).target_sign for pair in PAIRS}
    assert {pair[0] for pair, sign in signs.items() if sign == -1} == {"maestro"}
