"""A fresh process imports what its command needs: no torch to read a lineage or to print a help."""

import subprocess
import sys

import pytest
import tiny
from launch import ROOT
from table_results import image_entry, table_data

from ban_hf import BornAgainEnsemble
from ban_hf.lineage.files import write_json

HEAVY = {"torch", "transformers", "datasets", "timm", "matplotlib"}
RUN = str(ROOT / "tests" / "lineage" / "v1" / "run")
COMMANDS = """
import ban_hf
from ban_hf import load_lineage, verify_lineage, pull, push_family, push_generation, Record
from ban_hf.cli.main import main
for words in {commands}:
    try:
        status = main(words)
    except SystemExit as exit:  # --help
        status = exit.code
    assert status == 0, words
"""


def modules_after(program: str) -> set[str]:
    """The modules that a fresh process has imported at the end of a program."""
    command = [sys.executable, "-c", f"{program}\nimport sys\nprint('MODULES', *sys.modules)"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("MODULES ")[2].split())


@pytest.mark.parametrize("with_pictures", [False, True])
def test_commands_load_no_heavy_library_that_they_do_not_need(tmp_path, with_pictures):
    results = str(tmp_path / "results.json")
    write_json(tmp_path / "results.json", table_data([image_entry("teacher", 1, 300)]))
    light = [[], ["--help"], ["reproduce", "--help"], ["lineage", RUN], ["verify", RUN]]
    pictures = ["report", results, "--output_dir", str(tmp_path / "report")]
    commands = [pictures] if with_pictures else [*light, ["report", results]]
    heavy = HEAVY - {"matplotlib"} if with_pictures else HEAVY
    assert not heavy & modules_after(COMMANDS.format(commands=commands))


def test_the_help_of_a_recipe_loads_no_torch():
    program = """
import runpy, sys
sys.argv = ["ban_cifar.py", "--help"]
runpy.run_path("recipes/ban_cifar.py", run_name="__main__")
"""
    assert not (HEAVY - {"transformers"}) & modules_after(program)  # its HfArgumentParser


@pytest.mark.parametrize(
    "imports",
    [
        "import ban_hf, transformers",
        "from transformers import AutoModelForImageClassification\nimport ban_hf, transformers",
        "from transformers import AutoConfig\nimport ban_hf, transformers",
    ],
)
def test_the_auto_classes_know_our_models_in_either_order(tmp_path, imports):
    members = [tiny.vit(seed) for seed in (1, 2)]
    BornAgainEnsemble.from_members(members).save_pretrained(tmp_path)
    modules_after(f"""
{imports}
import sys
config = transformers.AutoConfig.for_model("ban_cifar", architecture="cifar_wrn_10_1")
assert not {{"timm", "sklearn", "datasets"}} & sys.modules.keys()
network = transformers.AutoModelForImageClassification.from_config(config)
assert type(network) is ban_hf.CifarNetForImageClassification
config = transformers.AutoConfig.for_model("ban_lstm", vocab_size=9, hidden_size=4)
assert type(transformers.AutoModelForCausalLM.from_config(config)) is ban_hf.LSTMForCausalLM
ensemble = transformers.AutoModelForImageClassification.from_pretrained({str(tmp_path)!r})
assert type(ensemble) is ban_hf.BornAgainEnsemble
import timm
timm.create_model("cifar_wrn_16_1")
""")
