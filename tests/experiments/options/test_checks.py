from __future__ import annotations

import pytest

from common.experiments.options import arguments
from common.experiments.options import checks as option_checks
from common.experiments.options.records import SketchOptions
from common.foundations.errors import UserError


def parse(*options):
    args = arguments.make_parser("", min_m=1).parse_args(options)
    option_checks.check_shared_options(args)
    return args


CONTRADICTIONS = {
    "--lambda_exp_min 3": "--lambda_exp_min 3 exceeds --lambda_exp_max 2; it must not",
    "--proj_type sjlt --explicit_projection": "--explicit_projection is for --proj_type normal; sjlt always projects "
    "explicitly",
    "--proj_type sjlt --sjlt_sparsity 4": "--sjlt_sparsity 4 needs --min_m of at least that, got 1",
    "--sjlt_sparsity 4": "--sjlt_sparsity 4 is for --proj_type sjlt, got normal",
    **{
        f"--proj_type {kind} --m_steps 4": f"--m_steps 4: {kind} of size m is a folded larger one, so its m are powers "
        "of two; normal, rademacher and kronecker can have any m"
        for kind in ("sjlt", "tensorsketch")
    },
    "--kronecker_ranks 4,4": "--kronecker_ranks 4,4 is for --proj_type kronecker, got normal",
    **{
        f"--proj_type kronecker --kronecker_ranks 4,8 {more}": "--kronecker_ranks 4,8 decides m; drop --max_m and "
        "--m_steps"
        for more in ("--max_m 64", "--m_steps 5")
    },
    **{
        f"--grad_dtype float16 {more}": "--grad_dtype float16 needs stored gradients: --offload none, cpu or disk"
        for more in ("", "--proj_type kronecker", "--proj_type sjlt --offload recompute")
    },
    "--reference_m 64": "--reference_m 64 is for --reference sketch",
    "--reference sketch --proj_type kronecker": "--reference sketch is for --proj_type normal, rademacher, sjlt, got "
    "kronecker",
    "--reference sketch --max_m 16384": "--max_m 16384 exceeds --reference_m 8192: the reference must be the larger "
    "sketch",
    "--reference sketch --reference_m 64 --max_m 128": "--max_m 128 exceeds --reference_m 64: the reference must be "
    "the larger sketch",
    "--reference sketch --offload disk": "--offload disk: --reference sketch keeps no gradients, drop it",
    "--reference sketch --grad_dtype float16": "--grad_dtype float16: --reference sketch stores no gradients, drop it",
    "--dataset mnist --model resnet9": "there is no pair --dataset mnist --model resnet9; there are: mnist+lr, "
    "mnist+mlp, mnist60k+lr, mnist60k+mlp, cifar2+resnet9, photos2+resnet9, maestro+musictransformer, "
    "chorales+musictransformer",
    "--workload no.py": "--workload no.py: there is no such file",
    "--workload /dev/null": "--workload /dev/null: there is no such file",
    "--workload FILE --dataset mnist": "--workload FILE brings its own data and model; drop --dataset mnist",
    "--workload FILE --model lr": "--workload FILE brings its own data and model; drop --model lr",
    "--workload FILE --benchmark dattri": "--workload FILE is nothing that --benchmark dattri has published",
    "--benchmark dattri --epochs 3": "--epochs 3 trains anew; --benchmark dattri comes trained",
    "--benchmark dattri --num_train 9": "--num_train 9: --benchmark dattri comes trained on all its samples",
}


@pytest.mark.parametrize("options", CONTRADICTIONS)
def test_options_that_contradict_each_other_are_refused_in_these_words(options):
    with pytest.raises(UserError) as error:
        parse(*options.replace("FILE", __file__).split())
    assert str(error.value) == CONTRADICTIONS[options].replace("FILE", __file__)


@pytest.mark.parametrize(
    "options",
    [
        "--lambda_exp_min 2",
        "--proj_type sjlt --sjlt_sparsity 4 --min_m 4",
        "--proj_type kronecker --m_steps 5",
        "--proj_type kronecker --kronecker_ranks 4,8",
        "--grad_dtype float16 --offload cpu",
        "--grad_dtype float16 --explicit_projection",
        "--grad_dtype float16 --proj_type sjlt",
        "--reference sketch --max_m 8192 --offload recompute",
        "--workload FILE --epochs 3 --num_train 9",
        "--benchmark dattri --dataset mnist --model lr",
    ],
)
def test_what_is_allowed_beside_them_is_allowed(options):
    parse(*options.replace("FILE", __file__).split())


@pytest.mark.parametrize(
    ("build", "device", "refused"), [("2.9.0+cpu", "cuda", True), ("2.9.0+cpu", "cpu", False), ("2.9.0", "cuda", False)]
)
def test_a_gpu_is_refused_by_a_build_that_knows_of_none(monkeypatch, build, device, refused):
    monkeypatch.setattr(option_checks, "version", {"torch": build}.__getitem__)
    if not refused:
        assert parse("--device", device).device == device
        return
    with pytest.raises(UserError) as error:
        parse("--device", device)
    assert str(error.value) == "--device cuda: no CUDA device is available here; use --device cpu"


def test_the_default_pair_fills_in_what_is_missing_and_a_file_has_none():
    assert (parse().dataset, parse().model) == ("mnist", "mlp")
    assert (parse("--model", "lr").dataset, parse("--dataset", "mnist60k").model) == ("mnist", "mlp")
    of_file = parse("--workload", __file__)
    assert (of_file.dataset, of_file.model) == (None, None)


def test_checked_options_say_which_sketches_are_asked_for():
    args = parse(*["--proj_type", "sjlt", "--sjlt_sparsity", "2", "--min_m", "2", "--num_trials", "7", "--seed", "3"])
    assert option_checks.sketch_options(args) == SketchOptions("sjlt", False, 2, 7, 3, None, None)
    args = parse(*["--proj_type", "kronecker", "--kronecker_ranks", "4,8"])
    assert option_checks.sketch_options(args) == SketchOptions("kronecker", False, 1, 5, 42, (4, 8), None)
    args = parse("--explicit_projection")
    assert option_checks.sketch_options(args) == SketchOptions("normal", True, 1, 5, 42, None, None)
    assert option_checks.sketch_options(parse("--reference", "sketch")).reference_m == 8192
    assert option_checks.sketch_options(parse(*["--reference", "sketch", "--reference_m", "64"])).reference_m == 64
