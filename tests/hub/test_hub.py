"""Publishing and pulling, by the real client, on a Hub of our own."""

import itertools
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import family
import pytest
import tiny
import torch
from ban_hf.jobs.run import Run
from huggingface_hub import ModelCard, constants
from loopback_hub.client import environment
from msgspec.structs import replace
from transformers import AutoModelForImageClassification, TrainerCallback

from ban_hf import (
    BANTrainer,
    BornAgainEnsemble,
    HubError,
    PublishError,
    create_classifier,
    create_language_model,
    load_lineage,
    pull,
    push_family,
    push_generation,
    verify_lineage,
)
from ban_hf.errors import RecordError, TamperedFileError, UnverifiableError
from ban_hf.hub import repository
from ban_hf.hub.publishing import card
from ban_hf.lineage.record import Architecture, Record, Seed
from ban_hf.tasks.heads import load_classifier

GENERATIONS = ["ns/fam-gen0", "ns/fam-gen1", "ns/fam-gen2"]
FAMILY = [*GENERATIONS, "ns/fam"]
PUBLISHED = {"push_to_hub": True, "hub_model_id": "ns/fam"}
WRITES = ("/commit/", "/lfs/", "/tag/")


def written(hub) -> list[str]:
    """The requests that changed something."""
    return [r.path for r in hub.requests if any(part in r.path for part in WRITES)]


def heads(hub) -> dict[str, str]:
    return {repo_id: repo.head for repo_id, repo in hub.repositories.items()}


def record_of(hub, repo_id: str) -> dict:
    return json.loads(hub.repositories[repo_id].files()["lineage.json"])


class TestPush:
    def test_each_generation_has_a_repository_in_one_commit_and_a_tag(self, published):
        assert list(published.repositories) == FAMILY  # in this order: the family is last
        for repo in published.repositories.values():
            ours, made = repo.commits_of("main")
            assert ours.title.startswith("ban_hf: ")
            assert made.title == "initial commit"
            assert repo.tags == {"v1": repo.head}

    def test_only_what_a_model_is_loaded_from_goes_up_and_its_card(self, published):
        names = set(published.repositories["ns/fam-gen2"].files()) - {".gitattributes"}
        model = {"config.json", "model.safetensors", "preprocessor_config.json"}
        assert names == model | {"lineage.json", "README.md", "results.png"}

    def test_a_pickle_or_a_log_that_lies_there_stays_at_home(self, hub, run):
        (run / "generation-0" / "training_args.bin").write_bytes(b"pickle")
        (run / "generation-0" / "notes.txt").write_text("private")
        push_family(run, "ns/fam")
        names = {name for repo in hub.repositories.values() for name in repo.files()}
        assert not names & {"training_args.bin", "notes.txt", "training_log.json"}

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_config.json", "a.gguf"])
    def test_what_is_no_part_of_a_model_is_refused_before_anything_is_sent(self, hub, run, name):
        (run / "generation-1" / name).write_bytes(b"{}")
        Record.read(run / "generation-1").write(run / "generation-1")
        with pytest.raises(RecordError, match=f"{name} is no part of a model"):
            push_family(run, "ns/fam")
        assert not hub.requests

    def test_the_files_of_tokenizers_go_up(self, hub, run):
        names = "bpe.codes spiece.model merges.txt chat_template.jinja source.spm".split()
        for name in names:
            (run / "generation-0" / name).write_text("a")
        Record.read(run / "generation-0").write(run / "generation-0")
        push_generation(run / "generation-0", "ns/fam-gen0")
        assert set(names) < set(hub.repositories["ns/fam-gen0"].files())
        verify_lineage("ns/fam-gen0")

    def test_nothing_tells_of_this_machine(self, hub, run):
        record = Record.read(run / "generation-0")
        record.data["source"] = {"id": "C:\\me\\faces", "config": None, "revision": None}
        record.data["mine"] = "file:///home/me/faces"
        more = {"deepspeed": "/home/me/zero.json", "seen": ["C:\\me\\x"]}
        record.training = replace(record.training, arguments=record.training.arguments | more)
        record.write(run / "generation-0")
        push_generation(run / "generation-0", "ns/fam-gen0")
        files = hub.repositories["ns/fam-gen0"].files()
        for content in files.values():
            for private in (str(run), "/home/me", "C:\\\\me", "hf_ours"):
                assert private.encode() not in content
        published = json.loads(files["lineage.json"])
        assert published["data"]["source"]["id"] == "faces"
        assert published["data"]["mine"] == "faces"
        assert published["training"]["arguments"]["deepspeed"] == "zero.json"

    def test_students_name_their_teachers_by_commit_and_hash(self, published):
        for teacher, student in itertools.pairwise(GENERATIONS):
            named = record_of(published, student)["teacher"]
            assert named["repo_id"] == teacher
            assert named["revision"] == published.repositories[teacher].head
            assert "path" not in named
        verify_lineage("ns/fam")

    def test_the_model_tree_is_a_chain(self, published):
        def data(repo_id):
            return ModelCard(published.repositories[repo_id].files()["README.md"].decode()).data

        assert data("ns/fam-gen0").base_model is None
        assert data("ns/fam-gen2").base_model == "ns/fam-gen1"
        assert data("ns/fam").base_model == ["ns/fam-gen1", "ns/fam-gen2"]
        assert data("ns/fam").license == "apache-2.0"

    def test_again_sends_nothing(self, published, never_killed):
        before = heads(published)
        commits = push_family(never_killed, "ns/fam")
        assert heads(published) == before
        assert not written(published)
        assert [str(commit) for commit in commits] == [f"{r}@{h}" for r, h in before.items()]

    def test_a_card_that_others_bettered_stays(self, published, never_killed):
        published.commit("ns/fam-gen1", {"README.md": b"# Better words"}, "Better words")
        commits = push_family(never_killed, "ns/fam")
        assert published.repositories["ns/fam-gen1"].files()["README.md"] == b"# Better words"
        assert commits[1].revision == published.repositories["ns/fam-gen1"].tags["v1"]

    def test_a_bare_name_is_the_users(self, hub, never_killed):
        assert push_family(never_killed, "fam")[-1].repo_id == "ns/fam"

    def test_a_family_that_has_grown_is_brought_up_to_date(self, published, run):
        before = heads(published)
        family.train(run, generations=3)
        push_family(run, "ns/fam")
        after = heads(published)
        assert {name: after[name] for name in GENERATIONS} == {n: before[n] for n in GENERATIONS}
        assert published.repositories["ns/fam"].tags == {
            "v1": before["ns/fam"],
            "v2": after["ns/fam"],
        }
        assert [m.generation for m in verify_lineage("ns/fam").ensemble.members] == [1, 2, 3]

    def test_a_family_without_an_ensemble_is_its_generations(self, hub, run, caplog):
        shutil.rmtree(run / "ensemble")
        assert [c.repo_id for c in push_family(run, "ns/fam")] == GENERATIONS
        assert "has no ensemble" in caplog.text


class TestRefusals:
    """Whatever is in the way stays as it is, and is named."""

    def test_others_model(self, hub, never_killed):
        hub.commit("ns/fam-gen0", {"model.bin": b"theirs"}, "A model")
        before = heads(hub)
        with pytest.raises(PublishError, match=r"holds .*, which is none of ours"):
            push_family(never_killed, "ns/fam")
        assert heads(hub) == before

    def test_another_training(self, published, tmp_path):
        family.train(tmp_path / "other", generations=1, seed=4)
        before = heads(published)
        with pytest.raises(PublishError, match="ns/fam-gen0 holds another training"):
            push_family(tmp_path / "other", "ns/fam")
        assert heads(published) == before

    def test_weights_that_others_replaced(self, published, never_killed):
        published.commit("ns/fam-gen1", {"model.safetensors": b"theirs"}, "Better weights")
        before = heads(published)
        with pytest.raises(PublishError, match=r"changed, added or removed model.safetensors"):
            push_family(never_killed, "ns/fam")
        assert heads(published) == before

    def test_a_growing_family_whose_card_others_edited_keeps_it(self, published, run):
        published.commit("ns/fam", {"README.md": b"# Mine"}, "My words")
        family.train(run, generations=3)
        push_family(run, "ns/fam")
        assert published.repositories["ns/fam"].files()["README.md"] == b"# Mine"
        assert len(verify_lineage("ns/fam").generations) == 4

    def test_a_growing_family_to_which_others_added_weights(self, published, run):
        published.commit("ns/fam", {"theirs.gguf": b"theirs"}, "ban_hf: as if it were ours")
        before = heads(published)["ns/fam"]
        family.train(run, generations=3)
        with pytest.raises(PublishError, match=r"was changed since it was published: theirs"):
            push_family(run, "ns/fam")
        assert heads(published)["ns/fam"] == before

    def test_files_of_an_earlier_state_go_when_they_are_of_no_use_any_more(self, published, run):
        old = run / "ensemble"
        (old / "vocab.txt").write_text("a")
        Record.read(old).write(old)
        published.repositories.pop("ns/fam")
        push_family(run, "ns/fam")
        family.train(run, generations=3)
        push_family(run, "ns/fam")
        assert "vocab.txt" not in published.repositories["ns/fam"].files()
        verify_lineage("ns/fam")

    @pytest.mark.parametrize("heeds", [True, False])
    def test_somebody_who_writes_between_our_look_and_our_commit(
        self, hub, never_killed, monkeypatch, heeds
    ):
        look = repository._check_no_conflict

        def hold_and_wait(api, repo_id, *rest):
            look(api, repo_id, *rest)
            if "theirs" not in hub.repositories[repo_id].files():
                hub.commit(repo_id, {"theirs": b"theirs"}, "In between")
            return set(), set()

        monkeypatch.setattr(repository, "_check_no_conflict", hold_and_wait)
        hub.ignores_parent = not heeds
        with pytest.raises(PublishError, match=r"holds theirs|another commit came"):
            push_family(never_killed, "ns/fam")
        assert hub.repositories["ns/fam-gen0"].files()["theirs"] == b"theirs"
        assert "ns/fam" not in hub.repositories

    def test_a_file_that_changed_since_it_was_trained(self, hub, run):
        weights = run / "generation-2" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
        with pytest.raises(TamperedFileError, match=r"model.safetensors"):
            push_family(run, "ns/fam")
        assert not hub.requests

    def test_an_empty_folder(self, hub, tmp_path):
        with pytest.raises(ValueError, match="no finished generation"):
            push_family(tmp_path, "ns/fam")

    def test_a_teacher_in_a_folder_is_not_published(self, hub, never_killed):
        with pytest.raises(ValueError, match="say where it is published"):
            push_generation(
                never_killed / "generation-1", "ns/x", teacher=str(never_killed / "generation-0")
            )
        assert not hub.repositories

    def test_another_networks_name_for_the_teacher(self, published, never_killed, tmp_path):
        family.train(tmp_path / "other", generations=1, seed=4)
        with pytest.raises(PublishError, match="another network than the generation 0"):
            push_generation(tmp_path / "other" / "generation-1", "ns/fam-gen1")

    def test_a_student_before_its_teacher(self, hub, never_killed):
        with pytest.raises(HubError, match="ns/fam-gen0"):
            push_generation(never_killed / "generation-1", "ns/fam-gen1")
        with pytest.raises(PublishError, match="does not end in -gen1"):
            push_generation(never_killed / "generation-1", "ns/student")
        assert not hub.repositories

    @pytest.mark.parametrize("token", ["hf_theirs", "hf_unknown"])
    def test_another_users_name(self, hub, never_killed, token, caplog):
        with pytest.raises(HubError, match="hf auth login") as caught:
            push_family(never_killed, "ns/fam", token=token)
        assert token not in str(caught.value) + caplog.text
        assert not hub.repositories

    def test_offline(self, hub, never_killed, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
            push_family(never_killed, "ns/fam")

    def test_a_pickle_that_others_added(self, published, never_killed):
        published.commit("ns/fam-gen1", {"pytorch_model.bin": b"theirs"}, "For older loaders")
        with pytest.raises(PublishError, match=r"added or removed pytorch_model.bin"):
            push_family(never_killed, "ns/fam")

    def test_a_tag_that_others_moved_to_other_weights(self, published, never_killed):
        repo = published.repositories["ns/fam-gen0"]
        ours = repo.files()
        published.commit("ns/fam-gen0", {"model.safetensors": b"theirs"}, "Theirs")
        repo.tags["v1"] = repo.head
        published.commit("ns/fam-gen0", ours, "Ours again")
        with pytest.raises(PublishError, match=r"ns/fam-gen0@v1 is published, but others"):
            push_family(never_killed, "ns/fam")

    def test_an_ensemble_of_a_generation_that_is_gone_is_found_before_anything_is_sent(
        self, hub, run
    ):
        shutil.rmtree(run / "generation-2")
        with pytest.raises(PublishError, match="has another generation 2 for a member"):
            push_family(run, "ns/fam")
        assert not hub.requests

    @pytest.mark.parametrize("token", ["hf_ours\n", " hf_ours"])
    def test_a_token_from_a_file_has_a_line_break(self, hub, never_killed, token):
        push_generation(never_killed / "generation-0", "ns/fam-gen0", token=token)
        assert {r.token for r in hub.requests if "/api/" in r.path} == {"hf_ours"}

    @pytest.mark.parametrize("token", ["hf_secret\0", "hf_sécret", "hf_a b"])
    def test_what_is_no_token_is_said_without_it(self, hub, never_killed, token, caplog):
        with pytest.raises(HubError, match="the token has characters") as caught:
            push_family(never_killed, "ns/fam", token=token)
        assert token not in str(caught.value) + caplog.text
        assert not hub.requests


class TestPrivate:
    def test_private_it_is(self, hub, never_killed):
        push_family(never_killed, "ns/fam", private=True)
        assert all(repo.private for repo in hub.repositories.values())
        verify_lineage("ns/fam")

    def test_a_server_that_ignores_it_gets_no_weights(self, hub, never_killed):
        hub.ignores_private = True
        with pytest.raises(PublishError, match="should be private, but"):
            push_family(never_killed, "ns/fam", private=True)
        self.nothing_was_sent(hub)

    def test_a_repository_that_is_public_already_gets_none(self, hub, never_killed):
        hub.commit("ns/fam-gen0", {}, "Made by hand")
        with pytest.raises(PublishError, match="should be private, but"):
            push_family(never_killed, "ns/fam", private=True)
        self.nothing_was_sent(hub)

    def test_what_comes_of_a_private_teacher_is_private_unless_it_is_said(self, hub, run):
        push_family(run, "ns/fam", private=True)
        family.train(run, generations=3)
        push_family(run, "ns/fam")
        assert hub.repositories["ns/fam-gen3"].private
        push_generation(run / "generation-1", "ns/open", teacher="ns/fam-gen0", private=False)
        assert not hub.repositories["ns/open"].private
        with pytest.raises(PublishError, match="should be public, but is private"):
            push_family(run, "ns/fam", private=False)

    def nothing_was_sent(self, hub):
        assert list(hub.repositories) == ["ns/fam-gen0"]
        assert set(hub.repositories["ns/fam-gen0"].files()) <= {".gitattributes"}
        assert not written(hub)

    def test_a_token_that_is_given_is_used_to_read_back(self, hub, never_killed, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "")
        push_family(never_killed, "ns/fam", private=True, token="hf_ours")
        with pytest.raises(UnverifiableError):
            verify_lineage("ns/fam")


class TestPull:
    def test_a_pulled_family_is_not_published_as_ones_own(self, published, tmp_path):
        pull("ns/fam", tmp_path / "mine")
        with pytest.raises(ValueError, match="not trained by a run of"):
            push_family(tmp_path / "mine", "ns/mine")
        with pytest.raises(ValueError, match="leave it out"):
            push_generation(tmp_path / "mine" / "generation-1", "ns/mine", teacher="ns/nonsense@v1")

    def test_a_family_comes_whole_and_verified(self, published, never_killed, tmp_path):
        lineage = pull("ns/fam", tmp_path / "mine")
        assert lineage.places[1] == str(tmp_path / "mine" / "generation-1")
        assert family.final_weights(tmp_path / "mine") == family.final_weights(never_killed)
        before = len(published.requests)
        verify_lineage(tmp_path / "mine")
        assert len(published.requests) == before  # its teachers lie beside it

    def test_what_was_pulled_into_a_run_is_not_its_own(self, published, run, tmp_path):
        shutil.rmtree(run / "ensemble")
        shutil.rmtree(run / "generation-2")
        pull("ns/fam-gen2", run)
        with pytest.raises(ValueError, match="generation-2: not trained by a run of"):
            push_family(run, "ns/mine")

    def test_one_generation(self, published, tmp_path):
        pull("ns/fam-gen1", tmp_path / "mine")
        assert [p.name for p in (tmp_path / "mine").iterdir()] == ["generation-1"]
        assert len(load_lineage(tmp_path / "mine").generations) == 2  # its teacher on the Hub

    def test_again_downloads_nothing_and_another_is_in_the_way(self, published, tmp_path):
        pull("ns/fam-gen1", tmp_path / "mine")
        pull("ns/fam-gen1", tmp_path / "mine")
        (tmp_path / "mine" / "generation-1" / "lineage.json").unlink()
        with pytest.raises(ValueError, match="is in the way"):
            pull("ns/fam-gen1", tmp_path / "mine")

    def test_a_tampered_file_leaves_nothing(self, published, tmp_path):
        weights = published.repositories["ns/fam-gen1"].files()["model.safetensors"]
        published.tamper("ns/fam-gen1", "model.safetensors", weights[:-1] + b"\1")
        with pytest.raises(TamperedFileError):
            pull("ns/fam-gen1", tmp_path / "mine")
        assert not list((tmp_path / "mine").iterdir())

    def test_a_folder_that_was_damaged_since_is_not_passed_over(self, published, tmp_path):
        pull("ns/fam-gen1", tmp_path / "mine")
        weights = tmp_path / "mine" / "generation-1" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
        with pytest.raises(TamperedFileError):
            pull("ns/fam-gen1", tmp_path / "mine")


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
        for use in (load_classifier, card):
            with pytest.raises(ValueError, match=r"trust_remote_code|cannot be loaded"):
                use("evil/model")
        assert not (tmp_path / "ran").exists()

    def test_a_generation_and_the_family_with_the_auto_class(self, published, never_killed):
        student = AutoModelForImageClassification.from_pretrained("ns/fam-gen2")
        assert family.same_weights(student, never_killed / "generation-2")
        ensemble = AutoModelForImageClassification.from_pretrained("ns/fam")
        assert isinstance(ensemble, BornAgainEnsemble)
        assert family.same_weights(ensemble, never_killed / "ensemble")

    def test_a_teacher_by_its_commit(self, published, tmp_path):
        commit = load_lineage("ns/fam-gen1").places[1]
        trainer = BANTrainer(tiny.vit(), tiny.arguments(tmp_path), teacher=commit)
        expected = AutoModelForImageClassification.from_pretrained("ns/fam-gen1")
        assert tiny.distance(trainer.teacher, expected) == 0

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["ImageClassification", "CausalLM"])
    def test_our_networks_load_where_ban_hf_is_not_installed(self, hub, tmp_path, kind):
        torch.manual_seed(0)
        model = (
            create_classifier("cifar_wrn_10_1", num_labels=3)
            if kind == "ImageClassification"
            else create_language_model("lstm_200", words=["a", "b", "<eos>", "<unk>"])
        )
        folder = tmp_path / "generation-0"
        model.save_pretrained(folder)
        record = Record("generation", "ours", 0, seed=Seed(0, 0))
        record.architecture = Architecture("m", type(model).__name__, model.num_parameters())
        record.write(folder)
        push_generation(folder, "ns/ours-gen0")
        program = f"""
import sys
sys.modules["ban_hf"] = None  # as where it is not installed
from transformers import AutoModelFor{kind}
model = AutoModelFor{kind}.from_pretrained("ns/ours-gen0", trust_remote_code=True)
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
        expected = sum(p.double().sum().item() for p in model.parameters())
        assert float(done.stdout) == expected


OTHER = tiny.vit(num_labels=3)


class Outage(TrainerCallback):
    """The Hub goes away when a generation begins to be trained."""

    def __init__(self, hub, generation: int) -> None:
        self.hub, self.generation = hub, generation

    def on_train_begin(self, args, state, control, **kwargs):
        if args.output_dir.endswith(f"generation-{self.generation}"):
            self.hub.fail(1, "error", times=10_000)


class TestTraining:
    """`push_to_hub` of a sequence."""

    def test_each_generation_is_online_as_soon_as_it_is_finished(self, hub, tmp_path):
        with pytest.raises(family.Killed):
            family.train(tmp_path, callbacks=[family.KillAt(2, 1)], **PUBLISHED)
        assert list(hub.repositories) == GENERATIONS[:2]
        verify_lineage("ns/fam-gen1")
        family.train(tmp_path, **PUBLISHED)
        assert list(hub.repositories) == FAMILY
        verify_lineage("ns/fam")

    def test_the_report_is_made_before_the_family_is_published(self, hub, tmp_path):
        seen = []
        family.train(tmp_path, report=lambda: seen.append(list(hub.repositories)), **PUBLISHED)
        assert seen == [GENERATIONS]

    def test_a_family_that_grows_asks_for_its_next_name_before_it_is_trained(self, hub, tmp_path):
        family.train(tmp_path, generations=1, **PUBLISHED)
        hub.commit("ns/fam-gen2", {"model.bin": b"theirs"}, "A model")
        with pytest.raises(PublishError, match=r"ns/fam-gen2 holds model"):
            family.train(tmp_path, generations=2, **PUBLISHED)
        assert not (tmp_path / "generation-2").exists()

    def test_a_private_family_grows_in_private(self, hub, tmp_path):
        family.train(tmp_path, generations=1, hub_private_repo=True, **PUBLISHED)
        family.train(tmp_path, generations=2, **PUBLISHED)
        assert [repo.private for repo in hub.repositories.values()] == [True] * 4
        verify_lineage("ns/fam")

    def test_what_could_not_be_published_is_refused_before_it_is_trained(self, tmp_path):
        with pytest.raises(ValueError, match=r"data\.source"):
            Run(family.network, tiny.arguments(tmp_path), 1, None, {"source": "my scans"})

    def test_what_was_missed_goes_up_with_the_next_generation(self, hub, tmp_path):
        class Back(TrainerCallback):
            def on_train_begin(self, args, state, control, **kwargs):
                if args.output_dir.endswith("generation-2"):
                    hub.heal()

        seen = []
        options = {"callbacks": [Outage(hub, 1), Back()], **PUBLISHED}
        family.train(tmp_path, report=lambda: seen.extend(hub.repositories), **options)
        assert seen == GENERATIONS
        verify_lineage("ns/fam")

    def test_a_hub_that_goes_away_costs_no_training(self, hub, tmp_path, caplog):
        with pytest.raises(HubError, match="give the same command again"):
            family.train(tmp_path, callbacks=[Outage(hub, 1)], **PUBLISHED)
        assert "is not published yet" in caplog.text
        assert len(load_lineage(tmp_path).generations) == 3
        hub.heal()
        before = family.final_weights(tmp_path)
        family.train(tmp_path, **PUBLISHED)
        assert family.final_weights(tmp_path) == before
        verify_lineage("ns/fam")

    def test_a_name_that_is_taken_is_refused_before_anything_is_trained(self, published, tmp_path):
        with pytest.raises(PublishError, match="ns/fam is published already"):
            family.train(tmp_path, **PUBLISHED)
        assert not (tmp_path / "generation-0").exists()

    @pytest.mark.parametrize("name", ["ns/fam-gen1", "ns/fam"])
    def test_a_later_name_that_is_taken_is_refused_before_anything_is_trained(
        self, hub, tmp_path, name
    ):
        hub.commit(name, {"model.bin": b"theirs"}, "A model")
        with pytest.raises(PublishError, match=f"{name} holds model"):
            family.train(tmp_path, **PUBLISHED)
        assert not (tmp_path / "generation-0").exists()

    def test_a_server_that_ignores_private_is_found_out_before_anything_is_trained(
        self, hub, tmp_path
    ):
        hub.ignores_private = True
        with pytest.raises(PublishError, match="should be private"):
            family.train(tmp_path, hub_private_repo=True, **PUBLISHED)
        assert not (tmp_path / "generation-0").exists()


class TestGoingOn:
    """A second family, which continues a published generation."""

    @pytest.fixture
    def teacher(self, published) -> str:
        return load_lineage("ns/fam-gen2").places[2]

    def test_the_students_go_on_counting_and_name_their_teacher(self, published, teacher, tmp_path):
        out = tmp_path / "second"
        lineage = family.train(out, generations=2, teacher=teacher, seed=5)
        assert [record.generation for record in lineage.generations] == [2, 3, 4]
        assert lineage.family == "second"
        (named,) = Record.read(out / "generation-3").teachers
        assert f"{named.repo_id}@{named.revision}" == teacher
        assert Record.read(out / "generation-4").teachers[0].path == "../generation-3"
        assert [m.generation for m in lineage.ensemble.members] == [3, 4]
        push_family(out, "ns/second")
        assert not {"ns/second-gen2", "ns/second-gen0"} & set(published.repositories)
        walked = verify_lineage("ns/second")
        assert [place.partition("@")[0] for place in walked.places.values()] == [
            *GENERATIONS,
            "ns/second-gen3",
            "ns/second-gen4",
            "ns/second",
        ]

    def test_one_student_is_joined_by_its_teacher(self, published, teacher, tmp_path):
        lineage = family.train(tmp_path, generations=1, teacher=teacher)
        assert [m.generation for m in lineage.ensemble.members] == [2, 3]
        push_family(tmp_path, "ns/second")
        verify_lineage("ns/second")

    def test_killed_and_resumed_equals_in_one_go(self, published, teacher, tmp_path):
        with pytest.raises(family.Killed):
            family.train(
                tmp_path / "a", teacher=teacher, callbacks=[family.KillAt(4, 3)], family="x"
            )
        family.train(tmp_path / "a", teacher=teacher, family="x")
        family.train(tmp_path / "b", teacher=teacher, family="x")
        assert family.final_weights(tmp_path / "a") == family.final_weights(tmp_path / "b")

    def test_a_branch_is_pinned_when_the_run_begins(self, published, tmp_path):
        family.train(tmp_path, generations=1, teacher="ns/fam-gen2")
        commit = published.repositories["ns/fam-gen2"].head
        published.commit("ns/fam-gen2", {"README.md": b"# New words"}, "New words")
        family.train(tmp_path, generations=2, teacher="ns/fam-gen2")
        assert Record.read(tmp_path / "generation-3").teachers[0].revision == commit

    def test_a_teacher_of_an_earlier_attempt_is_not_taken_for_a_student(self, published, tmp_path):
        with pytest.raises(ValueError, match="classes"):
            family.train(tmp_path / "a", teacher="ns/fam-gen2", model_init=lambda generation: OTHER)
        with pytest.raises(ValueError, match="was copied for another teacher"):
            family.train(tmp_path / "a", teacher="ns/fam-gen1")
        with pytest.raises(ValueError, match="was copied for another teacher"):
            family.train(tmp_path / "a")

    def test_images_of_another_normalisation_are_warned_of(self, published, tmp_path, caplog):
        data = family.views()
        other = type(data)(
            data.images, data.labels, data.label_names, mean=(0.4,) * 3, std=(1,) * 3
        )
        family.train(tmp_path / "a", generations=1, teacher="ns/fam-gen2")
        assert "may teach worse" not in caplog.text
        family.train(tmp_path / "b", generations=1, teacher="ns/fam-gen2", train_dataset=other)
        assert "may teach worse" in caplog.text

    def test_it_goes_on_though_the_hub_is_away(self, published, teacher, tmp_path):
        family.train(tmp_path / "a", generations=1, teacher=teacher)
        published.fail(1, "error", times=1_000_000)
        shutil.rmtree(tmp_path / "cache")
        lineage = family.train(tmp_path / "a", generations=2, teacher=teacher)
        assert len(lineage.generations) == 3

    def test_a_teacher_that_goes_away_costs_no_training(self, published, teacher, tmp_path, caplog):
        del published.repositories["ns/fam-gen0"]
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        with pytest.raises(UnverifiableError, match="ns/fam-gen0"):
            family.train(tmp_path / "a", teacher=teacher)  # before anything is trained
        assert not (tmp_path / "a" / "generation-3").exists()

    def test_a_private_teacher_is_reached_with_the_runs_token(
        self, hub, never_killed, tmp_path, monkeypatch
    ):
        push_family(never_killed, "ns/fam", private=True)
        monkeypatch.setenv("HF_TOKEN", "")
        shutil.rmtree(tmp_path / "cache")
        family.train(tmp_path / "a", generations=1, teacher="ns/fam-gen2", hub_token="hf_ours")
        assert Record.read(tmp_path / "a" / "generation-3").teachers[0].repo_id == "ns/fam-gen2"

    def test_another_teacher_or_none_is_another_run(self, published, teacher, tmp_path):
        family.train(tmp_path, generations=1, teacher=teacher)
        with pytest.raises(ValueError, match="teacher: 'ns/fam-gen2@"):
            family.train(tmp_path, generations=1)
        with pytest.raises(ValueError, match=r"teacher: .* here"):
            family.train(tmp_path, generations=1, teacher="ns/fam-gen1")

    def test_a_teacher_of_the_same_number_is_another_one(self, published, tmp_path, publication):
        others = published.repositories["ns/fam-gen2"].files()
        published.commit("ns/else-gen2", others, "The same files")
        with pytest.raises(ValueError, match="classes"):
            family.train(tmp_path / "a", teacher="ns/fam-gen2", model_init=lambda generation: OTHER)
        with pytest.raises(ValueError, match="was copied for another teacher"):
            family.train(tmp_path / "a", teacher="ns/else-gen2")

    def test_from_generation_0_that_is_not_published_again(self, published, tmp_path):
        family.train(tmp_path / "a", generations=1, teacher="ns/fam-gen0")
        commits = push_family(tmp_path / "a", "ns/second")
        assert [c.repo_id for c in commits] == ["ns/second-gen1", "ns/second"]
        verify_lineage("ns/second")

    def test_the_words_of_the_readme_resume_though_the_hub_is_away(self, published, tmp_path):
        family.train(tmp_path / "a", generations=1, teacher="ns/fam-gen2@v1")
        published.fail(1, "error", times=1_000_000)
        family.train(tmp_path / "a", generations=2, teacher="ns/fam-gen2@v1")

    def test_what_cannot_be_a_teacher_is_said(self, published, never_killed, tmp_path):
        with pytest.raises(ValueError, match="is an ensemble"):
            family.train(tmp_path / "a", teacher="ns/fam")
        with pytest.raises(ValueError, match="is an ensemble"):
            family.train(tmp_path / "b", teacher=str(never_killed / "ensemble"))
        with pytest.raises(ValueError, match="is a family: name one of its generations"):
            family.train(tmp_path / "b", teacher=str(never_killed))
        with pytest.raises(UnverifiableError, match="ns/none"):
            family.train(tmp_path / "c", teacher="ns/none")
        with pytest.raises(ValueError, match="generations=0"):
            family.train(tmp_path / "d", generations=0, teacher="ns/fam-gen2")
        assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_token_is_in_no_log(hub, never_killed, caplog):
    caplog.set_level(logging.DEBUG)
    hub.fail(3, "error", times=3)
    push_family(never_killed, "ns/fam", token="hf_ours")
    assert [r for r in caplog.records if r.name.startswith("ban_hf")]
    assert not [r for r in caplog.records if "hf_ours" in r.getMessage()]


class TestRecipe:
    """The command line from training to going on."""

    @pytest.fixture
    def trained(self, hub, recipe, tmp_path, monkeypatch) -> Path:
        """A family that the quickstart has published, private, with a token of its own."""
        flags = "--smoke --use_cpu --push_to_hub --hub_model_id ns/digits --hub_private_repo"
        token = ["--hub-tok", "hf_ours"]  # as argparse lets one write it
        recipe.main([*flags.split(), *token, "--output_dir", str(tmp_path / "a")])
        return tmp_path / "a"

    def test_the_familys_card_shows_what_the_run_measured(self, hub, trained):
        assert [repo.private for repo in hub.repositories.values()] == [True] * 4
        results = json.loads((trained / "results.json").read_text("utf-8"))
        card = hub.repositories["ns/digits"].files()["README.md"].decode()
        assert f"{results['ensembles'][0]['test']['error']:.2f}" in card
        picture = hub.repositories["ns/digits"].files()["results.png"]
        assert picture == (trained / "results.png").read_bytes()

    def test_no_token_is_in_any_file(self, hub, trained):
        files = [path.read_bytes() for path in trained.rglob("*") if path.is_file()]
        for repo in hub.repositories.values():
            files += repo.files().values()
        assert not [content for content in files if b"hf_ours" in content]
        assert "--hub-tok ..." in (trained / "results.md").read_text("utf-8")

    def test_another_run_goes_on_from_a_commit(self, hub, trained, recipe, tmp_path):
        teacher = load_lineage("ns/digits-gen2").places[2]
        flags = "--smoke --use_cpu --generations 1 --push_to_hub --hub_model_id ns/second"
        options = ["--teacher", teacher, "--output_dir", str(tmp_path / "b"), "--seed", "7"]
        recipe.main([*flags.split(), *options])
        assert [r.generation for r in verify_lineage("ns/second").generations] == [0, 1, 2, 3]
        assert hub.repositories["ns/second-gen3"].private  # as its teacher is
        with pytest.raises(ValueError, match="control and control_from compare with generation 0"):
            recipe.main([*flags.split(), *options, "--control"])
