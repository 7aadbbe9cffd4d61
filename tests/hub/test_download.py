"""Pulling, and loading what was published."""

import json
import shutil
import subprocess
import sys

import family
import pytest
import tiny
import torch
from loopback_hub.client import environment
from transformers import AutoModelForImageClassification

from ban_hf import (
    BANTrainer,
    BornAgainEnsemble,
    create_classifier,
    create_language_model,
    load_lineage,
    pull,
    push_family,
    push_generation,
    verify_lineage,
)
from ban_hf.errors import TamperedFileError
from ban_hf.hub.publishing import card
from ban_hf.lineage.record import Architecture, Record, Seed
from ban_hf.tasks.auto import load_model


class TestPull:
    def test_a_family_comes_whole_and_verified_and_is_not_published_as_ones_own(
        self, published, never_killed, tmp_path
    ):
        mine = tmp_path / "mine"
        lineage = pull("ns/fam", mine)
        assert lineage.places[1] == str(mine / "generation-1")
        assert family.final_weights(mine) == family.final_weights(never_killed)
        before = len(published.requests)
        verify_lineage(mine)
        assert len(published.requests) == before  # its teachers lie beside it
        with pytest.raises(ValueError, match="not trained by a run of"):
            push_family(mine, "ns/mine")
        with pytest.raises(ValueError, match="leave it out"):
            push_generation(mine / "generation-1", "ns/mine", teacher="ns/nonsense@v1")

    def test_what_was_pulled_into_a_run_is_not_its_own(self, published, run):
        shutil.rmtree(run / "ensemble")
        shutil.rmtree(run / "generation-2")
        pull("ns/fam-gen2", run)
        with pytest.raises(ValueError, match="generation-2: not trained by a run of"):
            push_family(run, "ns/mine")

    def test_one_generation_once(self, published, tmp_path):
        mine = tmp_path / "mine"
        pull("ns/fam-gen1", mine)
        assert [p.name for p in mine.iterdir()] == ["generation-1"]
        assert len(load_lineage(mine).generations) == 2  # its teacher on the Hub
        pull("ns/fam-gen1", mine)  # the same may be there
        weights = mine / "generation-1" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
        with pytest.raises(TamperedFileError):  # damaged since
            pull("ns/fam-gen1", mine)
        (mine / "generation-1" / "lineage.json").unlink()
        with pytest.raises(ValueError, match="is in the way"):
            pull("ns/fam-gen1", mine)

    def test_a_tampered_file_leaves_nothing(self, published, tmp_path):
        weights = published.repositories["ns/fam-gen1"].files()["model.safetensors"]
        published.tamper("ns/fam-gen1", "model.safetensors", weights[:-1] + b"\1")
        with pytest.raises(TamperedFileError):
            pull("ns/fam-gen1", tmp_path / "mine")
        assert not list((tmp_path / "mine").iterdir())


class TestLoad:
    def test_a_folder_of_the_same_name_does_not_stand_for_a_commit(
        self, published, never_killed, tmp_path, monkeypatch
    ):
        commit = load_lineage("ns/fam-gen2").places[2]
        shutil.copytree(never_killed / "generation-0", tmp_path / "ns" / "fam-gen2")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match="there is a folder ns/fam-gen2 here"):
            BANTrainer(tiny.vit(), tiny.arguments(tmp_path), teacher=commit)

    def test_code_of_a_repository_never_runs_unasked(self, hub, tmp_path, monkeypatch):
        code = f"open({str(tmp_path / 'ran')!r}, 'w')"
        auto_map = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}
        config = {"model_type": "evil", "auto_map": auto_map, "architectures": ["Model"]}
        record = Record("generation", "evil", 0, seed=Seed(0)).to_dict()
        record["architecture"] = {"class": "Model", "model_type": "evil", "num_parameters": 1}
        files = {"config.json": config, "lineage.json": record}
        contents = {name: json.dumps(data).encode() for name, data in files.items()}
        hub.commit("evil/model", {"evil.py": code.encode(), **contents}, "A model")
        monkeypatch.setattr("builtins.input", lambda *args: "y")
        for use in (load_model, card):
            with pytest.raises(ValueError, match=r"trust_remote_code|cannot be loaded"):
                use("evil/model")
        assert not (tmp_path / "ran").exists()

    def test_a_generation_and_the_family_with_the_auto_class(self, published, never_killed):
        student = AutoModelForImageClassification.from_pretrained("ns/fam-gen2")
        assert family.same_weights(student, never_killed / "generation-2")
        ensemble = AutoModelForImageClassification.from_pretrained("ns/fam")
        assert isinstance(ensemble, BornAgainEnsemble)
        assert family.same_weights(ensemble, never_killed / "ensemble")

    @pytest.mark.slow
    def test_our_networks_load_where_ban_hf_is_not_installed(self, hub, tmp_path):
        torch.manual_seed(0)
        models = {
            "ImageClassification": create_classifier("cifar_wrn_10_1", num_labels=3),
            "CausalLM": create_language_model("lstm_200", words=["a", "b", "<eos>", "<unk>"]),
        }
        for kind, model in models.items():
            model.save_pretrained(tmp_path / kind)
            record = Record("generation", "ours", 0, seed=Seed(0, 0))
            record.architecture = Architecture("m", type(model).__name__, model.num_parameters())
            record.write(tmp_path / kind)
            push_generation(tmp_path / kind, f"ns/{kind}")
        program = f"""
import sys
sys.modules["ban_hf"] = None  # as where it is not installed
import transformers
for kind in {list(models)}:
    auto_class = getattr(transformers, "AutoModelFor" + kind)
    model = auto_class.from_pretrained("ns/" + kind, trust_remote_code=True)
    print(sum(p.double().sum().item() for p in model.parameters()))
"""
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment(hub, tmp_path / "home"),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        sums = [sum(p.double().sum().item() for p in m.parameters()) for m in models.values()]
        assert list(map(float, done.stdout.split())) == sums
