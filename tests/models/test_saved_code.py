"""The code that is saved beside weights loads them where this package is not installed."""

import os
import subprocess
import sys

import pytest
import torch

from ban_hf import create_classifier, create_language_model

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


@pytest.mark.slow
def test_saved_code_loads_without_this_package(tmp_path):
    torch.manual_seed(0)
    words = torch.randint(0, 6, (2, 4))
    small = dict(words="a b c d <unk> <eos>".split(), hidden_size=8, initializer_range=0.8)
    filters = dict(filter_widths=(1, 3), filter_counts=(3, 4))
    image = torch.randn(2, 3, 32, 32)
    classifier = create_classifier("cifar_densenet_22_12", num_labels=10, stem_stride=2)
    spelled = create_language_model("char_cnn_lstm_small", **small, **filters)
    recurrent = {"configuration.py", "modeling_lstm.py"}
    cases = [  # the model, what it reads, and the files of code beside its weights
        (classifier, image, {"cifar_networks.py", "configuration.py", "modeling_cifar.py"}),
        (create_language_model("lstm_200", **small), words, recurrent),
        (spelled, words, recurrent),
    ]
    folders = [tmp_path / str(i) for i in range(len(cases))]
    for folder, (model, inputs, _) in zip(folders, cases, strict=True):
        model.eval().save_pretrained(folder)
        made = model.generate(inputs, max_new_tokens=6) if inputs is words else None
        torch.save((inputs, model(inputs).logits.detach(), made), folder / "expected.pt")
    home = {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | home
    command = [sys.executable, "-c", REMOTE, *map(str, folders)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for folder, (*_, code) in zip(folders, cases, strict=True):
        assert {path.name for path in folder.glob("*.py")} == code
        assert {path.name for path in folder.glob("again/*.py")} == code
