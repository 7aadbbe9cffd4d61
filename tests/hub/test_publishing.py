"""Publishing, by the real client, on a Hub of our own."""

import itertools
import json
import logging
import shutil

import family
import pytest
from huggingface_hub import ModelCard, constants
from msgspec.structs import replace

from ban_hf import (
    HubError,
    PublishError,
    push_family,
    push_generation,
    verify_lineage,
)
from ban_hf.errors import RecordError, TamperedFileError, UnverifiableError
from ban_hf.hub.repository import Repository
from ban_hf.lineage.record import Record

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

    def test_a_family_that_has_grown_is_brought_up_to_date_but_an_edited_card(self, published, run):
        before = heads(published)
        published.commit("ns/fam", {"README.md": b"# Mine"}, "My words")
        family.train(run, generations=3)
        push_family(run, "ns/fam")
        after = heads(published)
        assert {name: after[name] for name in GENERATIONS} == {n: before[n] for n in GENERATIONS}
        assert published.repositories["ns/fam"].tags == {
            "v1": before["ns/fam"],
            "v2": after["ns/fam"],
        }
        assert published.repositories["ns/fam"].files()["README.md"] == b"# Mine"
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

    @pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
    def test_weights_that_others_replaced_or_added(self, published, never_killed, name):
        published.commit("ns/fam-gen1", {name: b"theirs"}, "Better weights")
        before = heads(published)
        with pytest.raises(PublishError, match=f"changed, added or removed {name}"):
            push_family(never_killed, "ns/fam")
        assert heads(published) == before

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
    def test_a_commit_of_others_between_our_look_and_our_commit(
        self, hub, never_killed, monkeypatch, heeds
    ):
        look = Repository._check_no_conflict

        def hold_and_wait(self, *rest):
            look(self, *rest)
            repo_id = self.repo_id
            if "theirs" not in hub.repositories[repo_id].files():
                hub.commit(repo_id, {"theirs": b"theirs"}, "In between")
            return set(), set()

        monkeypatch.setattr(Repository, "_check_no_conflict", hold_and_wait)
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
        assert all(repo.private for repo in hub.repositories.values())
        verify_lineage("ns/fam")
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


def test_a_token_is_in_no_log(hub, never_killed, caplog):
    caplog.set_level(logging.DEBUG)
    hub.fail(3, "error", times=3)
    push_family(never_killed, "ns/fam", token="hf_ours")
    assert [r for r in caplog.records if r.name.startswith("ban_hf")]
    assert not [r for r in caplog.records if "hf_ours" in r.getMessage()]
