from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch

from common.foundations.errors import UserError
from common.workloads.datasets import cifar2
from tests.workloads.datasets.reference_archive import archive_of
from tests.workloads.datasets.reference_cifar10 import (
    BATCHES,
    batch_pickle,
    python2_pickle,
    random_batches,
    write_archive,
)


def members(batches) -> dict[str, bytes]:
    return {name: batch_pickle(images, labels) for name, (images, labels) in batches.items()}


def test_cats_and_dogs_keep_the_order_of_the_batches_and_become_0_and_1(tmp_path):
    batches = random_batches()
    # An archive's members come in any order; the batches' own numbers count.
    archive = write_archive(tmp_path, dict(reversed(members(batches).items())))
    data = cifar2.load(tmp_path, archive)
    for part, names in ((data.train, BATCHES[:5]), (data.test, BATCHES[5:])):
        rows = [
            (image, {3: 0, 5: 1}[label])
            for name in names
            for image, label in zip(*batches[name], strict=True)
            if label in (3, 5)
        ]
        assert part.targets.tolist() == [label for _, label in rows]
        expected = np.stack([image.reshape(3, 32, 32) for image, _ in rows])
        pixels = ((part.inputs * 0.5 + 0.5) * 255).round().to(torch.uint8)
        assert torch.equal(pixels, torch.from_numpy(expected))
        assert part.inputs.dtype == torch.float32
        assert part.targets.dtype == torch.int64


def test_pixels_are_scaled_as_torchvision_does_bit_for_bit():
    pixels = torch.arange(256, dtype=torch.uint8)
    # ToTensor, then Normalize(0.5, 0.5), in float32.
    expected = (pixels.numpy().astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    assert np.array_equal(cifar2.normalise(pixels).numpy(), expected)
    assert expected[0] == -1
    assert expected[-1] == 1


def test_the_official_archive_is_asked_for_by_its_published_checksum(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"not the archive")
    with pytest.raises(UserError, match="c58f30108f718f92721af3b95e74349a") as raised:
        cifar2.load(tmp_path)
    assert str(tmp_path / "cifar-10-python.tar.gz") in str(raised.value)
    assert "photos2" in str(raised.value)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_truncated_archive_is_named_even_if_its_checksum_is_expected(tmp_path, keep):
    write_archive(tmp_path, members(random_batches()))
    path = tmp_path / "cifar-10-python.tar.gz"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz"):
        cifar2.load(tmp_path, archive_of(path, "photos2"))


def test_a_corrupted_archive_is_named_even_if_its_checksum_is_expected(tmp_path):
    write_archive(tmp_path, members(random_batches()))
    path = tmp_path / "cifar-10-python.tar.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz"):
        cifar2.load(tmp_path, archive_of(path, "photos2"))


def test_a_missing_batch_is_named(tmp_path):
    content = members(random_batches())
    del content["data_batch_4"]
    with pytest.raises(UserError, match="has no cifar-10-batches-py/data_batch_4"):
        cifar2.load(tmp_path, write_archive(tmp_path, content))


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("where", ["whole", "data", "labels"])
def test_a_pickle_that_runs_a_command_is_refused_and_runs_nothing(tmp_path, where):
    attack = Attack(tmp_path / "hacked")
    batch = {b"data": 0, b"labels": [0]} | ({where.encode(): attack} if where != "whole" else {})
    content = members(random_batches()) | {
        "data_batch_2": pickle.dumps(attack if where == "whole" else batch, protocol=2)
    }
    with pytest.raises(UserError, match=r"data_batch_2 is not a CIFAR-10 batch: it asks for \w+\.\w+, which"):
        cifar2.load(tmp_path, write_archive(tmp_path, content))
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "call", [b"cbuiltins\neval\n", b"c__builtin__\ngetattr\n", b"cnumpy\nload\n", b"cnumpy\nf2py.x\n"]
)
def test_every_other_name_in_a_pickle_is_refused(call):
    with pytest.raises(UserError, match="which is refused"):
        cifar2.read_batch(b"\x80\x02" + call + b".", "batch")


IMAGES = np.zeros((4, 3072), dtype=np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[:3], [0, 1, 2, 3], r"data has shape \(3, 3072\), expected \(4, 3072\)"),
        (IMAGES[:, :3071], [0, 1, 2, 3], r"data has shape \(4, 3071\)"),
        (IMAGES.astype(np.int8), [0, 1, 2, 3], "not a row-major array of bytes"),
        (IMAGES.astype(object), [0, 1, 2, 3], "not a row-major array of bytes"),
        (np.asfortranarray(IMAGES), [0, 1, 2, 3], "not a row-major array of bytes"),
        (IMAGES, [0, 1, 2, 10], "labels must be a list of integers 0 to 9"),
        (IMAGES, [0, 1, 2, -1], "labels must be"),
        (IMAGES, [0.0, 1.0, 2.0, 3.0], "labels must be"),
        (IMAGES, ["0", "1", "2", "3"], "labels must be"),
        (IMAGES, [[0], [1], [2], [3]], "labels must be"),
        (IMAGES, [[0], [1, 2]], "not a CIFAR-10 batch"),
        (IMAGES[:0], [], "labels must be"),
        ("no array", [0], "not a CIFAR-10 batch"),
    ],
)
def test_wrong_shapes_types_and_labels_are_user_errors(images, labels, message):
    with pytest.raises(UserError, match=message):
        cifar2.read_batch(batch_pickle(images, labels), "batch")


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"no pickle at all", python2_pickle([1, 2]), python2_pickle({})])
def test_what_is_no_batch_is_a_user_error(content):
    with pytest.raises(UserError, match="batch is not a CIFAR-10 batch"):
        cifar2.read_batch(content, "batch")


def test_every_truncation_of_a_batch_is_a_user_error():
    content = batch_pickle(IMAGES[:1], [3])
    for length in range(len(content)):
        with pytest.raises(UserError, match="batch is not a CIFAR-10 batch"):
            cifar2.read_batch(content[:length], "batch")


def test_numpy_reads_the_same_arrays_from_these_pickles():
    images, labels = random_batches()["data_batch_1"]
    content = batch_pickle(images, labels)
    # The writer of these tests is right only if the documented way to read the official batches agrees.
    trusted = pickle.loads(content.replace(b"cnumpy.core.", b"cnumpy._core."), encoding="bytes")
    found, found_labels = cifar2.read_batch(content, "batch")
    assert np.array_equal(trusted[b"data"], found)
    assert trusted[b"labels"] == found_labels.tolist() == labels
