"""Our networks by the Auto classes: what registration loads, and code saved beside weights."""

import os
import subprocess
import sys

import pytest
import torch

from ban_hf import create_classifier, create_language_model

#: The files of code that are saved beside each model's weights.
CODE = {
    "cifar_densenet_22_12": {"cifar_networks.py", "configuration.py", "modeling_cifar.py"},
    "lstm_200": {"configuration.py", "modeling_lstm.py"},
    "char_cnn_lstm_small": {"configuration.py", "modeling_lstm.py"},
}
REMOTE = """
import sys
sys.modules["ban_hf"] = None  # as where it is not installed
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageClassification
for folder in sys.argv[1:]:
    inputs, logits, made = torch.load(f"{folder}/expected.pt")
    auto = AutoModelForImageClassification if made is None else AutoModelForCausalLM
    model = auto.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules.")
    torch.testing.assert_close(model(inputs).logits, logits)
    model.save_pretrained(f"{folder}/again")
    if made is None:
        continue
    assert torch.equal(model.generate(inputs, max_new_tokens=6), made)
    fresh = auto.from_config(model.config, trust_remote_code=True)
    assert all(0.4 < p.abs().max() <= 0.8 for n, p in fresh.named_parameters() if p.ndim > 1)
"""
LIGHT = """
import sys
import ban_hf
from transformers import AutoConfig, AutoModelForImageClassification
config = AutoConfig.for_model("ban_cifar", architecture="cifar_wrn_10_1")
assert not {"timm", "sklearn", "datasets"} & sys.modules.keys()
model = AutoModelForImageClassification.from_config(config)
assert type(model) is ban_hf.CifarNetForImageClassification
import timm
timm.create_model("cifar_wrn_16_1")
"""


def run(program: str, *arguments: str, **environment: str) -> None:
    """Run a program in a process of its own, and raise what it raises."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_saved_code_loads_without_this_package(tmp_path):
    torch.manual_seed(0)
    words = torch.randint(0, 6, (2, 4))
    small = dict(words="a b c d <unk> <eos>".split(), hidden_size=8, initializer_range=0.8)
    filters = dict(filter_widths=(1, 3), filter_counts=(3, 4))
    made_from = {
        "cifar_densenet_22_12": (
            create_classifier("cifar_densenet_22_12", num_labels=10, stem_stride=2),
            torch.randn(2, 3, 32, 32),
        ),
        "lstm_200": (create_language_model("lstm_200", **small), words),
        "char_cnn_lstm_small": (
            create_language_model("char_cnn_lstm_small", **small, **filters),
            words,
        ),
    }
    for name, (model, inputs) in made_from.items():
        model.eval().save_pretrained(tmp_path / name)
        made = model.generate(inputs, max_new_tokens=6) if inputs is words else None
        torch.save((inputs, model(inputs).logits.detach(), made), tmp_path / name / "expected.pt")
    folders = [tmp_path / name for name in CODE]
    home = {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    run(REMOTE, *map(str, folders), **home)
    for folder in folders:
        assert {path.name for path in folder.glob("*.py")} == CODE[folder.name]
        assert {path.name for path in folder.glob("again/*.py")} == CODE[folder.name]


@pytest.mark.slow
def test_registration_loads_neither_timm_nor_datasets():
    run(LIGHT)
