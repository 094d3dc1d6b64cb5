"""README, CONTRIBUTING and docs/ are true: links, commands, options, files of a run."""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import runpy
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch

from common.experiments import script
from common.workloads import pairs
from tests.documents import PAGES, ROOT, anchors, code_spans, commands, links, read, sections, tables
from tests.drawn import draw_nothing
from tests.experiments.audit import cases as audit_cases
from tests.tiny import write_tiny

pytestmark = pytest.mark.usefixtures("one_thread")

EXPERIMENTS = (
    "spectrum_bounds.py",
    "hyperparam_selection.py",
    "faithfulness_utility.py",
    "factorized_influence.py",
)
SCRIPTS = (*EXPERIMENTS, "audit_projections.py", "bench.py", "project_gradients.py", "projection_cost.py")
OF_SKETCHES = "Sketches of spectrum_bounds.py, hyperparam_selection.py and faithfulness_utility.py"
SECTIONS_OF_OPTIONS = {
    "spectrum_bounds.py": ("All experiments", OF_SKETCHES, "Only spectrum_bounds.py"),
    "hyperparam_selection.py": ("All experiments", OF_SKETCHES, "Only hyperparam_selection.py"),
    "faithfulness_utility.py": ("All experiments", OF_SKETCHES, "Only faithfulness_utility.py"),
    "factorized_influence.py": ("All experiments", "Only factorized_influence.py"),
    "audit_projections.py": ("audit_projections.py",),
    "project_gradients.py": ("project_gradients.py",),
    "projection_cost.py": ("projection_cost.py",),
    "bench.py": ("bench.py",),
}
FILES = sections(read("docs/files.md"))
# what a toy run on a machine without GPU and network does not record
ELSEWHERE = {"peak_cuda_memory_bytes"}
TOY = ["--num_train", "30", "--epochs", "1", "--num_trials", "1", "--num_test_grads", "10"]
TOY_OWN = {
    "spectrum_bounds.py": ["--max_m", "64", "--min_d_lambda", "0"],
    "hyperparam_selection.py": ["--max_m", "64", "--num_subsets", "4", "--val_ratio", "0.3"],
    "faithfulness_utility.py": ["--max_m", "64", "--num_subsets", "4", "--val_ratio", "0.3"],
    "factorized_influence.py": ["--m_a", "8", "--m_e", "4", "--num_subsets", "4", "--val_ratio", "0.3"],
}
DOCUMENTED = {tuple(command[1:]): None for page in PAGES for command in commands(read(page)) if command[0] == "python"}


class Parsed(Exception):  # noqa: N818
    """Carries a script's parser out of the script, at the moment when it would read its options."""


def real_parser(name: str) -> argparse.ArgumentParser:
    def stop(parser, *_):
        raise Parsed(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Parsed) as parsed:
            main_of(name)()
    return parsed.value.args[0]


def main_of(name: str) -> Callable[[], None]:
    return runpy.run_path(str(ROOT / name))["main"]


def run(name: str, *options: str, drawn: bool = False) -> int:
    """Run a script in this process, as from the repository's folder, without figures unless so wished.

    Return its exit status.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            draw_nothing(patch)
        patch.setattr(sys, "argv", [name, *options])
        patch.chdir(ROOT)
        with pytest.raises(SystemExit) as stop:
            script.run_script(main_of(name))
    return stop.value.code


@pytest.fixture(scope="module")
def parsers():
    return {name: real_parser(name) for name in SCRIPTS}


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {action.option_strings[-1]: action for action in parser._actions if action.dest != "help"}


# --- links, tables, names -----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_to_a_file_and_a_heading_that_exist(page):
    for link in links(read(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES)
def test_every_row_of_a_table_has_as_many_cells_as_its_header(page):
    for table in tables(read(page)):
        assert {len(row) for row in table.rows} == {len(table.header)}, f"{page}: {table.header}"


def test_every_page_is_reached_from_the_readme():
    assert set(PAGES) - {"README.md"} <= set(links(read("README.md")))


def test_the_readme_fits_on_a_few_screens():
    assert read("README.md").count("\n") <= 140


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_folder_of_the_code_that_is_named_exists(page):
    for span in code_spans(read(page)):
        if re.match(r"(common|bench|tests|docs|examples)/", span) and "NAME" not in span and "*" not in span:
            path, _, function = span.partition(": ")
            assert (ROOT / path).exists(), f"{page}: {span}"
            assert not function or f"def {function}(" in (ROOT / path).read_text(encoding="utf-8"), f"{page}: {span}"


def test_every_room_has_its_row_in_the_readme():
    rooms = {f"{path.parent.relative_to(ROOT)}/" for path in ROOT.glob("common/*/__init__.py")}
    (table,) = tables(sections(read("README.md"))["Where to look in the code"])
    assert {row[0].strip("`") for row in table.rows} == rooms | {"bench/", "tests/"}


# --- commands and options -----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_command_can_be_typed_as_it_stands(page, parsers):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for words in commands(read(page)):
        if words[0] == "make":
            assert set(words[1:]) <= set(targets), words
        elif words[:2] == ["python", "-m"] and words[2].startswith("examples."):
            # dattri installs a package of the same name
            assert Path(find_spec(words[2]).origin).is_relative_to(ROOT), words
        elif words[:3] == ["python", "-m", "pytest"]:
            assert all((ROOT / word).exists() for word in words[3:] if word.endswith(".py")), words
        elif words[0] == "torchrun":
            # what torchrun itself is asked for ends with --
            script_words = words[words.index("--") + 1 :]
            parsers[script_words[0]].parse_args(script_words[1:])
        else:
            assert words[0] == "python", words
            parsers[words[1]].parse_args(words[2:])  # ends the test where an option or value is not allowed


def test_every_target_of_the_makefile_is_explained():
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = [words for page in ("README.md", "CONTRIBUTING.md", "docs/results.md") for words in commands(read(page))]
    assert {words[1] for words in named if words[0] == "make"} >= set(targets)


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_is_named_exists(page, parsers):
    known = {option for parser in parsers.values() for option in options_of(parser)} | {"--help"}
    assert {span.split()[0] for span in code_spans(read(page)) if span.startswith("--")} <= known


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_tables_of_options_have_every_option_with_its_choices_and_its_default(name, parsers):
    text = sections(read("docs/options.md"))
    rows = [row for section in SECTIONS_OF_OPTIONS[name] for table in tables(text[section]) for row in table.rows]
    documented = {option.strip("`"): (meaning, default) for option, meaning, default in rows}
    actions = options_of(parsers[name])
    assert set(documented) == set(actions)
    defaults = vars(parsers[name].parse_args([]))
    for option, action in actions.items():
        meaning, default = documented[option]
        assert {str(choice) for choice in action.choices or ()} <= set(code_spans(meaning)), option
        if action.nargs == 0:
            assert default == "off", option
        elif defaults[action.dest] is None:  # what is then done depends on others, and is said in words
            assert default, option
        else:
            assert default == f"`{defaults[action.dest]}`", option


@pytest.fixture(scope="module")
def datasets_once():
    """Unpacking digits takes seconds, chorales half a minute: once for all runs inside this process."""
    with pytest.MonkeyPatch.context() as patch:
        for datasets in (pairs.EMBEDDED, pairs.DOWNLOADED):
            for name, load in datasets.items():
                patch.setitem(datasets, name, functools.cache(load))
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("datasets_once")
@pytest.mark.parametrize("words", [words for words in DOCUMENTED if words[0] in TOY_OWN], ids=" ".join)
def test_every_command_of_an_experiment_runs(words, tmp_path, toy_benchmarks):
    """At toy size, where later options replace earlier ones; bench.py has a test of its own."""
    name, *options = words
    kept = ["--benchmark_dir", str(toy_benchmarks), "--cache_dir", str(toy_benchmarks / "cache")]
    reference = ["--reference_m", "256"] if "--reference" in options else []
    assert run(name, *options, *TOY, *TOY_OWN[name], *reference, *kept, "--output_dir", str(tmp_path)) == 0
    assert list(tmp_path.glob(f"{Path(name).stem}/*/config.json"))


# --- files of a run -----------------------------------------------------------------------------------------


def audit_options(folder: Path) -> list[str]:
    """Write two stores and a ground truth, and return the options that audit them."""
    stores = audit_cases.write_stores(folder)
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(20, audit_cases.NUM_TRAIN, generator=generator) < 0.5
    losses = torch.randn(20, audit_cases.NUM_QUERIES, generator=generator)
    torch.save(masks, folder / "masks.pt")
    torch.save(losses, folder / "losses.pt")
    options = ["--train", stores.train, "--queries", stores.queries, "--ground_truth", folder, "--val_ratio", "0.5"]
    return [*map(str, options), "--write_scores", str(folder / "scores")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return experiment -> folder of a toy run that writes all there is to write."""
    folder = tmp_path_factory.mktemp("documented")
    # well trained, and with queries inside range(F): then some m is predicted to be useful, and recommended
    workload = write_tiny(folder, "recipe = TrainingRecipe(epochs=30, learning_rate=0.3)\ntest = train")
    common = ["--workload", str(workload), "--num_trials", "2"]
    common += ["--lambda_exp_min", "-6", "--lambda_exp_max", "-4", "--num_test_grads", "20"]
    for option in ("output_dir", "benchmark_dir", "cache_dir"):
        common += [f"--{option}", str(folder / option)]
    assert run("factorized_influence.py", *common, "--num_subsets", "5", "--val_ratio", "0.5", "--m_a", "4") == 0
    common += ["--ridge_correction", "--min_m", "8", "--max_m", "32"]
    assert run("spectrum_bounds.py", *common, "--proj_type", "sjlt", "--grad_dtype", "bfloat16") == 0
    assert run("hyperparam_selection.py", *common, "--num_subsets", "5", "--val_ratio", "0.5") == 0
    assert run("faithfulness_utility.py", *common, "--num_subsets", "5", "--val_ratio", "0.5") == 0
    assert run("audit_projections.py", *audit_options(folder), "--output_dir", str(folder / "output_dir")) == 0
    names = [Path(name).stem for name in (*EXPERIMENTS, "audit_projections.py")]
    folders = [next((folder / "output_dir").glob(f"{name}/*")) for name in names]
    # test samples of its own: none of them lies inside range(F)
    other = ["--workload", str(write_tiny(folder)), "--output_dir", str(folder / "cross"), "--test_mode", "test"]
    assert run("spectrum_bounds.py", *common, *other, "--scores", "cross", "--min_d_lambda", "0") == 0
    (cross,) = (folder / "cross").glob("spectrum_bounds/*")
    compared = ["--runs", *map(str, folders[:2]), "--min_m", "32"]
    compared += [f"--{option}={folder / option}" for option in ("output_dir", "benchmark_dir", "data_dir")]
    assert run("projection_cost.py", *compared, drawn=True) == 0
    folders += (folder / "output_dir").glob("projection_cost/*")
    found = {path.parent.name: path for path in folders} | {"bench": ROOT / "results" / "bench"}
    return found | {"spectrum_bounds --scores cross": cross}


def documented(section: str) -> set[str]:
    """Return the names in the first column of a section's table."""
    (table,) = tables(FILES[section])
    return {name for row in table.rows for name in code_spans(row[0])}


@pytest.mark.parametrize("section", [section for section in FILES if section.endswith(".csv")])
def test_every_column_is_documented_and_every_documented_column_is_there(section, finished):
    experiment, file_name = section.split(": ")
    # what an example has written lies beside the runs that it judges
    folder = finished.get(experiment, ROOT / "results" / "audit_projections")
    assert set(pd.read_csv(folder / file_name).columns) == documented(section)


def test_every_file_of_a_run_is_documented(finished):
    for experiment, folder in finished.items():
        for path in folder.iterdir():
            sections_of_file = {f"{name}: {path.name}" for name in (experiment, experiment.split()[0])}
            assert sections_of_file & set(FILES) or path.name in ("config.json", "figure.png", "figure.pdf")


def test_every_field_of_config_json_is_documented_and_every_documented_field_is_there(finished):
    names = [Path(name).stem for name in EXPERIMENTS]
    experiments = (*names, "spectrum_bounds --scores cross")
    configs = [json.loads((finished[name] / "config.json").read_text()) for name in experiments]
    assert set().union(*configs) == documented("config.json") - ELSEWHERE
    explained = set(code_spans(FILES["config.json"]))
    for config in configs:
        assert set(config["seconds"]) <= explained
        gaps = {re.sub("^corrected_", "", name) for name in config.get("prediction_gaps", ())}
        assert {name if name in explained else re.sub("gap_.*", "gap_...", name) for name in gaps} <= explained
    assert set(configs[0]["grad_dtype_effect"][0]) - {"lambda"} <= explained


def test_every_field_of_a_manifest_is_documented_and_every_documented_field_is_there(tmp_path):
    workload = ["--workload", str(write_tiny(tmp_path)), "--benchmark_dir", str(tmp_path), "--data_dir", str(tmp_path)]
    assert run("project_gradients.py", *workload, "--m", "8", "--store", str(tmp_path / "store")) == 0
    manifest = json.loads((tmp_path / "store" / "test" / "manifest.json").read_text())
    section = "project_gradients: manifest.json"
    assert set(manifest) == documented(section)
    assert set(manifest["notes"]) | set(manifest["parameters"][0]) <= set(code_spans(FILES[section]))


def test_every_field_of_selection_json_is_documented_and_every_documented_field_is_there(finished):
    selection = json.loads((finished["hyperparam_selection"] / "selection.json").read_text())
    section = "hyperparam_selection: selection.json"
    assert set(selection) == documented(section)
    nested = {*selection["theory_m"][0], *selection["m_at_least_d_lambda"], *selection["predicted_choice"]}
    nested |= {*selection["by_m"][0], *selection["joint"], *selection["joint"]["best"]}
    assert nested <= set(code_spans(FILES[section]))


def test_every_field_of_verdict_json_is_documented_and_every_documented_field_is_there(finished):
    verdict = json.loads((finished["faithfulness_utility"] / "verdict.json").read_text())
    assert set(verdict) == documented("faithfulness_utility: verdict.json")


def test_every_field_that_an_audit_writes_is_documented_and_every_documented_field_is_there(finished):
    config, selection, other = (
        json.loads((finished[experiment] / name).read_text())
        for experiment, name in (
            ("audit_projections", "config.json"),
            ("audit_projections", "selection.json"),
            ("hyperparam_selection", "selection.json"),
        )
    )
    section = "audit_projections: config.json"
    assert set(config) - documented("config.json") == documented(section) - documented("config.json")
    assert documented(section) <= set(config)
    assert set(config["seconds"]) | set(config) <= set(code_spans(FILES[section]))
    assert set(selection) - set(other) == documented("audit_projections: selection.json")
    assert set(other) - set(selection) == {"predicted_choice", "by_m", "joint"}


# --- what runs without a reader -----------------------------------------------------------------------------


def test_the_commit_hook_uses_the_ruff_of_the_requirements():
    (required,) = re.findall(r"^ruff.*$", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r'additional_dependencies: \["(.*)"\]', hooks) == [required] * hooks.count("id: ")


def test_continuous_integration_runs_what_the_page_says():
    assert "- run: .ci/run\n" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
