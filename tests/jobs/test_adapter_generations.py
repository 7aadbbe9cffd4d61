"""Born-again adapters: a sequence whose generations are adapters of one base."""

import json
import shutil
from pathlib import Path

import adapted
import family
import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, TrainerCallback

from ban_hf import (
    BANError,
    LineageError,
    PublishError,
    Record,
    load_lineage,
    train_generations,
    verify_lineage,
)
from ban_hf.cli.main import main
from ban_hf.errors import UnlistedFileError
from ban_hf.tasks.auto import load_model
from ban_hf.tasks.base import mean_logits

OPTIONS = dict(
    per_device_train_batch_size=8,
    num_train_epochs=2,
    max_steps=-1,
    save_strategy="steps",
    save_steps=2,
    optim="adamw_torch",
    learning_rate=0.01,
)


def train(folder, base, generations=2, model_init=None, callbacks=None, teacher=None, **changes):
    """A family of adapters of a base in a folder."""
    kind = base.name

    def fresh(generation):
        return adapted.adapter(base, torch.initial_seed() % 2**31, lora_dropout=0.1)

    return train_generations(
        fresh if model_init is None else model_init,
        tiny.arguments(folder, **OPTIONS | changes),
        generations=generations,
        train_dataset=adapted.data(kind),
        test_dataset=adapted.data(kind, 12, 1),
        callbacks=callbacks,
        teacher=teacher,
    )


@pytest.fixture(scope="module", params=adapted.KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def base(kind, tmp_path_factory) -> Path:
    """A base in a folder. Not to be changed."""
    return adapted.save_base(kind, tmp_path_factory.mktemp("base") / kind)


@pytest.fixture(scope="module")
def done(base, tmp_path_factory) -> Path:
    """Generations 0, 1 and 2 and their ensemble. Not to be changed."""
    folder = tmp_path_factory.mktemp("adapters")
    train(folder, base)
    return folder


@pytest.fixture
def movable(tmp_path):
    """A base and a family of two generations, to be changed."""
    base = adapted.save_base("gpt2", tmp_path / "gpt2")
    train(tmp_path / "run", base, 1)
    return base, tmp_path / "run"


class TestSaved:
    def test_a_generation_is_an_adapter_alone(self, done):
        for generation in range(3):
            names = {path.name for path in (done / f"generation-{generation}").iterdir()}
            assert names == {
                *("adapter_config.json", "adapter_model.safetensors", "base_config.json"),
                *("lineage.json", "training_log.json"),
            }

    def test_its_record_names_the_base(self, done, base, kind):
        digests = family.listing(base)
        for generation in range(3):
            network = Record.read(done / f"generation-{generation}").architecture
            assert network.class_name == type(load_model(done / "generation-0")).__name__
            assert "peft" in Record.read(done / f"generation-{generation}").code
            found = network.adapter
            assert (found.type, found.base, found.base_revision) == ("LORA", kind, None)
            assert {f.path: f.sha256 for f in found.base_files} == {
                name: digests[name] for name in ("config.json", "model.safetensors")
            }

    def test_it_loads_by_peft_with_the_same_logits(self, done, base, kind):
        folder = done / "generation-2"
        plain = adapted.adapter(base).unload() if kind == "gpt2" else None
        loaded = load_model(folder)
        if plain is not None:
            other = PeftModel.from_pretrained(plain, folder)
            assert torch.equal(adapted.logits(other, kind), adapted.logits(loaded, kind))
        record = Record.read(folder)
        counted = sum(p.numel() for p in loaded.parameters() if p.requires_grad)
        assert 0 < counted < record.architecture.num_parameters

    def test_the_base_stays_as_it_was(self, done, base, kind, tmp_path):
        again = adapted.save_base(kind, tmp_path / kind)
        assert family.listing(base) == family.listing(again)

    def test_generations_differ_and_are_measured(self, done, kind):
        lineage = load_lineage(done)
        headline = "perplexity" if kind == "gpt2" else "error"
        generations = lineage.generations
        assert len({record.seed.trained_sha256 for record in generations}) == 3
        assert all(record.metric(headline, "test") > 0 for record in generations)
        assert lineage.ensemble.metric(headline, "test") > 0
        assert lineage.records[1].metric("teacher_kl", "test") > 0

    def test_the_ensemble_is_the_mean_of_its_members(self, done, kind):
        members = [adapted.logits(load_model(done / f"generation-{k}"), kind) for k in (1, 2)]
        found = adapted.logits(load_model(done / "ensemble"), kind)
        torch.testing.assert_close(
            found.softmax(-1), mean_logits(members).softmax(-1), rtol=1e-4, atol=1e-6
        )

    def test_the_parameters_that_were_trained_are_counted(self, done, kind):
        found = json.loads((done / "evaluations" / "generation-1.json").read_text())["parameters"]
        expected = {"gpt2": 2 * (16 + 48), "bert": 2 * 2 * (16 + 16) + 5 * 17}[kind]
        assert found["trainable"] == expected
        plain = tiny.gpt2() if kind == "gpt2" else tiny.bert().bert
        assert found["all"] == plain.num_parameters() + expected


class TestResumed:
    def test_after_a_kill_the_weights_are_the_same(self, done, base, tmp_path):
        with pytest.raises(family.Killed):
            train(tmp_path, base, callbacks=[family.KillAt(1, 4)])
        checkpoints = tmp_path / "checkpoints" / "generation-1"
        assert (checkpoints / "checkpoint-4" / "adapter_model.safetensors").is_file()
        train(tmp_path, base)
        assert family.final_weights(tmp_path) == family.final_weights(done)
        assert Record.read(tmp_path / "generation-1").training.resumed_from == "checkpoint-4"

    def test_again_nothing_is_trained(self, movable):
        base, run = movable
        before = family.identities(run / "generation-1")
        train(run, base, 1)
        assert family.identities(run / "generation-1") == before

    def test_the_base_may_be_named_in_another_way(self, movable, monkeypatch):
        base, run = movable
        monkeypatch.chdir(base.parent)
        train(run, Path("gpt2"), 2)
        config = json.loads((run / "generation-2" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(base)

    @pytest.mark.parametrize("change", [{"lora_alpha": 8}, {"r": 3}])
    def test_another_adapter_is_refused(self, movable, change):
        base, run = movable
        with pytest.raises(BANError, match="adapter:"):
            train(run, base, 2, lambda generation: adapted.adapter(base, generation, **change))

    def test_another_base_is_refused(self, movable):
        base, run = movable
        tiny.gpt2(8).save_pretrained(base)
        with pytest.raises(BANError, match="adapter:"):
            train(run, base, 2)

    def test_a_sequence_goes_on_from_an_adapter(self, movable, tmp_path):
        base, run = movable
        train(tmp_path / "more", base, 1, teacher=str(run / "generation-1"))
        record = Record.read(tmp_path / "more" / "generation-2")
        assert record.teachers[0].generation == 1
        verify_lineage(tmp_path / "more")


class TestVerified:
    def test_it_is_green_and_red_when_the_base_was_changed(self, movable, capsys):
        base, run = movable
        assert main(["verify", str(run)]) in (0, None)
        weights = load_file(base / "model.safetensors")
        weights["transformer.ln_f.bias"][0] += 1e-6
        save_file(weights, base / "model.safetensors", {"format": "pt"})
        assert main(["verify", str(run)]) == 1
        assert "model.safetensors" in capsys.readouterr().err

    def test_a_base_in_shards_is_known_by_all_of_them(self, tmp_path):
        base, run = tmp_path / "gpt2", tmp_path / "run"
        tiny.gpt2(7).save_pretrained(base, max_shard_size="8KB")
        train(run, base, 0)
        shards = [path.name for path in base.glob("model-*.safetensors")]
        files = Record.read(run / "generation-0").architecture.adapter.base_files
        assert len(shards) > 1
        assert {file.path for file in files} == {
            *("config.json", "model.safetensors.index.json"),
            *shards,
        }
        verify_lineage(run)
        tiny.gpt2(8).save_pretrained(tmp_path / "other")  # loaders prefer a single file
        shutil.copy(tmp_path / "other" / "model.safetensors", base)
        with pytest.raises(UnlistedFileError, match=r"model\.safetensors"):
            verify_lineage(run)

    @pytest.mark.parametrize("change", ["gone", "config", "adapter"])
    def test_other_changes_are_found(self, movable, change):
        base, run = movable
        verify_lineage(run)
        if change == "gone":
            shutil.rmtree(base)
        elif change == "config":
            file = base / "config.json"
            file.write_text(file.read_text().replace("gelu_new", "relu"))
        else:
            file = run / "generation-0" / "adapter_config.json"
            file.write_text(file.read_text().replace('"lora_alpha": 4', '"lora_alpha": 5'))
        with pytest.raises(LineageError):
            verify_lineage(run)

    def test_a_base_in_a_folder_is_not_published(self, movable, hub):
        from ban_hf import push_family

        base, run = movable
        with pytest.raises(PublishError, match="publish the base"):
            push_family(run, "ns/adapters")
        with pytest.raises(PublishError, match="publish the base"):
            train(run.parent / "other", base, 1, push_to_hub=True, hub_model_id="ns/adapters")


class TestRefused:
    def check(self, tmp_path, model_init, message):
        with pytest.raises(BANError, match=message):
            train(tmp_path / "run", tmp_path / "gpt2", 1, model_init)
        assert not (tmp_path / "run" / "generation-0").exists()

    def test_a_base_without_a_name(self, tmp_path):
        config = LoraConfig(r=2, task_type="CAUSAL_LM")
        self.check(tmp_path, lambda k: get_peft_model(tiny.gpt2(), config), "save_pretrained")

    def test_a_base_that_is_gone(self, tmp_path):
        base = adapted.save_base("gpt2", tmp_path / "gpt2")
        model = adapted.adapter(base)
        shutil.rmtree(base)
        self.check(tmp_path, lambda k: model, "cannot be loaded")

    def test_a_base_that_is_not_as_it_was_saved(self, tmp_path):
        base = adapted.save_base("gpt2", tmp_path / "gpt2")

        def changed(generation):
            model = AutoModelForCausalLM.from_pretrained(base)
            with torch.no_grad():
                model.transformer.h[0].mlp.c_fc.bias.add_(1)
            return get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM"))

        self.check(tmp_path, changed, r"c_fc\.bias is not that of")

    def test_an_initialization_that_changes_the_base(self, tmp_path):
        base = adapted.save_base("gpt2", tmp_path / "gpt2")
        self.check(
            tmp_path,
            lambda k: adapted.adapter(base, k, init_lora_weights="pissa"),
            "leaves the base as it is",
        )

    def test_layers_without_their_wrapper(self, tmp_path):
        base = adapted.save_base("gpt2", tmp_path / "gpt2")
        self.check(tmp_path, lambda k: adapted.adapter(base).get_base_model(), "get_peft_model")

    def test_a_weight_that_is_trained_and_not_saved(self, tmp_path):
        base = adapted.save_base("gpt2", tmp_path / "gpt2")

        def unfrozen(generation):
            model = adapted.adapter(base)
            model.get_base_model().transformer.ln_f.requires_grad_(True)
            return model

        self.check(tmp_path, unfrozen, r"ln_f\.weight is trained")

    def test_a_weight_that_changed_and_is_not_saved(self, tmp_path):
        base = adapted.save_base("gpt2", tmp_path / "gpt2")

        class Change(TrainerCallback):
            def on_train_end(self, args, state, control, model, **kwargs):
                model.get_base_model().transformer.ln_f.bias.data.add_(1)

        with pytest.raises(BANError, match=r"ln_f\.bias was trained, or changed"):
            train(tmp_path / "run", base, 1, callbacks=[Change()])

    def test_two_adapters(self, tmp_path):
        base = adapted.save_base("gpt2", tmp_path / "gpt2")

        def two(generation):
            model = adapted.adapter(base)
            model.add_adapter("other", LoraConfig(r=2, task_type="CAUSAL_LM"))
            return model

        self.check(tmp_path, two, "adapters default, other")

    def test_batch_norm_whose_statistics_would_move(self, tmp_path):
        tiny.cifar().save_pretrained(tmp_path / "cifar")

        def model(generation):
            from transformers import AutoModelForImageClassification

            base = AutoModelForImageClassification.from_pretrained(tmp_path / "cifar")
            torch.manual_seed(generation)
            return get_peft_model(base, LoraConfig(r=2, target_modules=r".*conv\d?"))

        with pytest.raises(BANError, match="BatchNorm"):
            family.train(tmp_path / "run", 1, model)
