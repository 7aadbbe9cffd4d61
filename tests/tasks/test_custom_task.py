"""The task that the documentation defines, run end to end as it is written there."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from tiny import arguments
from transformers import ViTConfig, ViTModel

from ban_hf import TASKS, BANError, load_family, task_of, train_generations, verify_lineage
from ban_hf.hub.publishing import card
from ban_hf.lineage.catalog import CATALOG
from ban_hf.tasks.auto import load_model

PAGE = Path(__file__).parents[2] / "docs" / "objectives_and_trainer.md"
TINY = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


def pairs(first: int, last: int) -> list[dict[str, torch.Tensor]]:
    """Handwritten digits side by side, and the number that they write."""
    digits = load_digits()
    images, labels = digits.images / 16, digits.target
    others = np.random.default_rng(0).permutation(len(images))
    return [
        {
            "pixel_values": torch.tensor(np.hstack([images[i], images[j]]), dtype=torch.float32),
            "labels": torch.tensor(10 * labels[i] + labels[j]),
        }
        for i, j in zip(range(first, last), others[first:last], strict=True)
    ]


@pytest.fixture(scope="module")
def page() -> dict:
    """What the code of the page defines."""
    section = PAGE.read_text("utf-8").partition("### A task of your own")[2]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict = {}
    exec(code, names)
    yield names
    del TASKS["two-digits"], CATALOG["two-digits"]


def test_a_task_of_ones_own_makes_a_family(page, tmp_path):
    model, config = page["TwoDigitsModel"], page["TwoDigitsConfig"]
    args = arguments(tmp_path, max_steps=150, learning_rate=1.0, logging_steps=20)
    train_generations(
        lambda generation: model(config()),
        args,
        generations=2,
        train_dataset=pairs(0, 1400),
        test_dataset=pairs(1400, 1797),
    )
    verify_lineage(tmp_path)
    records = load_family(tmp_path).records
    assert "pipeline_tag: two-digits" in str(card(tmp_path / "generation-1"))
    with pytest.raises(BANError, match="ViTModel cannot be distilled"):
        task_of(ViTModel(ViTConfig(**TINY)))
    losses = [record.metric("loss", "test") for record in records]
    assert max(losses) < 0.8 * np.log(10)
    assert records[1].metric("teacher_agreement", "test") > 60
    images = torch.stack([pair["pixel_values"] for pair in pairs(1400, 1410)])
    with torch.no_grad():
        z, first, second = (
            load_model(tmp_path / name)(images).logits.softmax(-1)
            for name in ("ensemble", "generation-1", "generation-2")
        )
    torch.testing.assert_close(z, (first + second) / 2)
