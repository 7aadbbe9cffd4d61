"""Adapters on the Hub: their base by its commit, in records, cards and verification."""

import json
from pathlib import Path

import adapted
import pytest
import tiny
import torch
from huggingface_hub import HfApi, ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification

from ban_hf import BANTrainer, Record, load_lineage, pull, train_generations, verify_lineage
from ban_hf.errors import LineageError
from ban_hf.tasks.auto import load_model


def put(folder: Path, repo_id: str) -> str:
    """Upload a folder; its commit."""
    api = HfApi()
    api.create_repo(repo_id, exist_ok=True)
    return api.upload_folder(repo_id=repo_id, folder_path=folder).oid


@pytest.fixture
def base(hub, tmp_path) -> str:
    """A base on the Hub: its commit."""
    return put(adapted.save_base("bert", tmp_path / "bert"), "ns/base")


def fresh(generation: int = 0) -> PeftModel:
    """A fresh adapter of that base."""
    model = AutoModelForSequenceClassification.from_pretrained("ns/base", num_labels=tiny.CLASSES)
    return get_peft_model(model, LoraConfig(r=2, task_type="SEQ_CLS"))


def train(folder: Path, **changes):
    return train_generations(
        fresh,
        tiny.arguments(folder, push_to_hub=True, hub_model_id="ns/fam", **changes),
        generations=2,
        train_dataset=adapted.data("bert"),
        test_dataset=adapted.data("bert", 12, 1),
    )


def test_a_family_is_published_and_verified_with_its_base(hub, base, tmp_path):
    train(tmp_path / "run")
    verify_lineage("ns/fam")
    for generation in (0, 2):
        folder = tmp_path / "run" / f"generation-{generation}"
        network = Record.read(folder).architecture
        assert (network.adapter.base, network.adapter.base_revision) == ("ns/base", base)
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["revision"]) == ("ns/base", base)
        card = ModelCard.load(f"ns/fam-gen{generation}")
        assert card.data.base_model == "ns/base"
        assert card.data.to_dict()["base_model_relation"] == "adapter"
        assert card.data.library_name == "peft"
        assert "an adapter (LORA) of the frozen `ns/base`" in card.text
        assert str(tmp_path) not in str(card)
        snippet = card.text.split("```python\n")[1].split("```")[0]
        scope: dict = {}
        exec(snippet, scope)  # as a reader of the card would run it
        expected = adapted.logits(load_model(folder), "bert")
        assert torch.equal(adapted.logits(scope["model"], "bert"), expected)

    pull("ns/fam", tmp_path / "pulled")
    verify_lineage(tmp_path / "pulled")
    pulled = load_model(tmp_path / "pulled" / "generation-2")
    assert torch.equal(adapted.logits(pulled, "bert"), expected)


def test_a_base_that_moved_on_stays_the_commit_that_was_adapted(hub, base, tmp_path):
    train(tmp_path / "run")
    expected = adapted.logits(load_model("ns/fam-gen1"), "bert")
    tiny.bert(8).bert.save_pretrained(tmp_path / "bert")
    assert put(tmp_path / "bert", "ns/base") != base
    verify_lineage("ns/fam")
    assert torch.equal(adapted.logits(load_model("ns/fam-gen1"), "bert"), expected)


def test_a_base_that_is_gone_is_not_verified(hub, base, tmp_path):
    train(tmp_path / "run")
    hub.repositories.pop("ns/base")
    for path in (tmp_path / "cache" / "hub").glob("models--ns--base*"):
        path.rename(tmp_path / "away")
    load_lineage("ns/fam")
    with pytest.raises(LineageError, match="ns/base"):
        verify_lineage("ns/fam")


def test_an_id_of_an_adapter_teaches(hub, base, tmp_path):
    train(tmp_path / "run")
    student = fresh()
    task = BANTrainer(
        student,
        tiny.arguments(tmp_path / "out"),
        teacher="ns/fam-gen1",
        train_dataset=adapted.data("bert"),
    )
    expected = adapted.logits(load_model(tmp_path / "run" / "generation-1"), "bert")
    assert torch.equal(adapted.logits(task.teacher, "bert"), expected)
    ours = {id(p) for p in student.parameters()}
    assert sum(id(p) in ours for p in task.teacher.parameters()) > 10
