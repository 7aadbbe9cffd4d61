"""Publishing, by the real client, on a Hub of our own."""

import itertools
import json
import logging
import shutil
from pathlib import Path

import family
import pytest
from huggingface_hub import ModelCard, constants
from msgspec.structs import replace

from ban_hf import HubError, PublishError, push_family, push_generation, verify_lineage
from ban_hf.errors import RecordError, TamperedFileError, UnverifiableError
from ban_hf.hub.repository import Repository
from ban_hf.lineage.record import Record

GENERATIONS = ["ns/fam-gen0", "ns/fam-gen1", "ns/fam-gen2"]
FAMILY = [*GENERATIONS, "ns/fam"]
WEIGHTS = "model.safetensors"
WRITES = ("/commit/", "/lfs/", "/tag/")


@pytest.fixture(scope="module")
def grown(never_killed, tmp_path_factory) -> Path:
    """The family with one more generation. Not to be changed."""
    folder = Path(shutil.copytree(never_killed, tmp_path_factory.mktemp("grown") / "run"))
    family.train(folder, generations=3)
    return folder


def written(hub) -> list[str]:
    """The requests that changed something."""
    return [r.path for r in hub.requests if any(part in r.path for part in WRITES)]


def heads(hub) -> dict[str, str]:
    return {repo_id: repo.head for repo_id, repo in hub.repositories.items()}


def refuses(hub, words: str, folder: Path, repo_id: str = "ns/fam", **options) -> None:
    """Pushing a family is refused, and what is on the Hub stays as it is."""
    before = heads(hub)
    with pytest.raises(PublishError, match=words):
        push_family(folder, repo_id, **options)
    assert heads(hub) == before


def add(folder: Path, name: str, content: bytes = b"a") -> None:
    """Put a file into a folder and its record."""
    (folder / name).write_bytes(content)
    Record.read(folder).write(folder)


class TestPush:
    def test_each_generation_has_a_repository_in_one_commit_and_a_tag(self, published):
        assert list(published.repositories) == FAMILY  # in this order: the family is last
        for repo in published.repositories.values():
            ours, made = repo.commits_of("main")
            assert ours.title.startswith("ban_hf: ")
            assert made.title == "initial commit"
            assert repo.tags == {"v1": repo.head}
        names = set(published.repositories["ns/fam-gen2"].files()) - {".gitattributes"}
        model = {"config.json", WEIGHTS, "preprocessor_config.json"}
        assert names == model | {"lineage.json", "README.md", "results.png"}

    def test_students_name_their_teachers_by_commit_in_records_and_cards(self, published):
        for teacher, student in itertools.pairwise(GENERATIONS):
            record = json.loads(published.repositories[student].files()["lineage.json"])
            assert record["teacher"]["repo_id"] == teacher
            assert record["teacher"]["revision"] == published.repositories[teacher].head
            assert "path" not in record["teacher"]
        text = {name: repo.files()["README.md"] for name, repo in published.repositories.items()}
        data = {name: ModelCard(card.decode()).data for name, card in text.items()}
        assert data["ns/fam-gen0"].base_model is None
        assert data["ns/fam-gen2"].base_model == "ns/fam-gen1"
        assert data["ns/fam"].base_model == ["ns/fam-gen1", "ns/fam-gen2"]
        assert data["ns/fam"].license == "apache-2.0"

    def test_the_files_of_tokenizers_go_up_and_what_is_not_listed_stays_at_home(self, hub, run):
        folder = run / "generation-0"
        names = {"bpe.codes", "spiece.model", "merges.txt", "chat_template.jinja", "source.spm"}
        for name in names:
            add(folder, name)
        (folder / "training_args.bin").write_bytes(b"pickle")
        (folder / "notes.txt").write_text("private")
        push_generation(folder, "ns/fam-gen0")
        found = set(hub.repositories["ns/fam-gen0"].files())
        assert names < found
        assert not found & {"training_args.bin", "notes.txt", "training_log.json"}
        verify_lineage("ns/fam-gen0")

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_config.json", "a.gguf"])
    def test_what_is_no_part_of_a_model_is_refused_before_anything_is_sent(self, hub, run, name):
        add(run / "generation-1", name, b"{}")
        with pytest.raises(RecordError, match=f"{name} is no part of a model"):
            push_family(run, "ns/fam")
        assert not hub.requests

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

    def test_again_sends_nothing_and_a_card_that_others_bettered_stays(
        self, published, never_killed
    ):
        tagged = {name: repo.tags["v1"] for name, repo in published.repositories.items()}
        published.commit("ns/fam-gen1", {"README.md": b"# Better words"}, "Better words")
        before = heads(published)
        commits = push_family(never_killed, "fam")  # a bare name is the user's
        assert heads(published) == before
        assert not written(published)
        assert [str(commit) for commit in commits] == [f"{r}@{c}" for r, c in tagged.items()]
        assert published.repositories["ns/fam-gen1"].files()["README.md"] == b"# Better words"

    def test_a_family_that_has_grown_is_brought_up_to_date_but_an_edited_card(
        self, published, grown
    ):
        before = heads(published)
        published.commit("ns/fam", {"README.md": b"# Mine"}, "My words")
        push_family(grown, "ns/fam")
        after = heads(published)
        assert {name: after[name] for name in GENERATIONS} == {n: before[n] for n in GENERATIONS}
        tags = {"v1": before["ns/fam"], "v2": after["ns/fam"]}
        assert published.repositories["ns/fam"].tags == tags
        assert published.repositories["ns/fam"].files()["README.md"] == b"# Mine"
        assert [m.generation for m in verify_lineage("ns/fam").ensemble.members] == [1, 2, 3]

    def test_files_of_an_earlier_state_go_when_they_are_of_no_use_any_more(
        self, published, run, grown
    ):
        add(run / "ensemble", "vocab.txt")
        published.repositories.pop("ns/fam")
        push_family(run, "ns/fam")
        push_family(grown, "ns/fam")
        assert "vocab.txt" not in published.repositories["ns/fam"].files()
        verify_lineage("ns/fam")

    def test_a_family_without_an_ensemble_is_its_generations(self, hub, run, caplog):
        shutil.rmtree(run / "ensemble")
        assert [c.repo_id for c in push_family(run, "ns/fam")] == GENERATIONS
        assert "has no ensemble" in caplog.text


class TestRefusals:
    """Whatever is in the way stays as it is, and is named."""

    def test_others_model(self, hub, never_killed):
        hub.commit("ns/fam-gen0", {"model.bin": b"theirs"}, "A model")
        refuses(hub, r"holds .*, which is none of ours", never_killed)

    def test_another_training(self, published, another):
        refuses(published, "ns/fam-gen0 holds another training", another)
        with pytest.raises(PublishError, match="another network than the generation 0"):
            push_generation(another / "generation-1", "ns/fam-gen1")

    @pytest.mark.parametrize("name", [WEIGHTS, "pytorch_model.bin"])
    def test_weights_that_others_replaced_or_added(self, published, never_killed, name):
        published.commit("ns/fam-gen1", {name: b"theirs"}, "Better weights")
        refuses(published, f"changed, added or removed {name}", never_killed)

    def test_a_growing_family_to_which_others_added_weights(self, published, grown):
        published.commit("ns/fam", {"theirs.gguf": b"theirs"}, "ban_hf: as if it were ours")
        before = heads(published)["ns/fam"]
        with pytest.raises(PublishError, match=r"was changed since it was published: theirs"):
            push_family(grown, "ns/fam")
        assert heads(published)["ns/fam"] == before

    @pytest.mark.parametrize("heeds", [True, False])
    def test_a_commit_of_others_between_our_look_and_our_commit(
        self, hub, never_killed, monkeypatch, heeds
    ):
        look = Repository._check_no_conflict

        def hold_and_wait(self, *rest):
            look(self, *rest)
            if "theirs" not in hub.repositories[self.repo_id].files():
                hub.commit(self.repo_id, {"theirs": b"theirs"}, "In between")
            return set(), set()

        monkeypatch.setattr(Repository, "_check_no_conflict", hold_and_wait)
        hub.ignores_parent = not heeds
        with pytest.raises(PublishError, match=r"holds theirs|another commit came"):
            push_family(never_killed, "ns/fam")
        assert hub.repositories["ns/fam-gen0"].files()["theirs"] == b"theirs"
        assert "ns/fam" not in hub.repositories

    def test_a_tag_that_others_moved_to_other_weights(self, published, never_killed):
        repo = published.repositories["ns/fam-gen0"]
        ours = repo.files()
        published.commit("ns/fam-gen0", {WEIGHTS: b"theirs"}, "Theirs")
        repo.tags["v1"] = repo.head
        published.commit("ns/fam-gen0", ours, "Ours again")
        refuses(published, r"ns/fam-gen0@v1 is published, but others", never_killed)

    def test_what_does_not_fit_together_is_found_before_anything_is_sent(self, hub, run, tmp_path):
        weights = run / "generation-2" / WEIGHTS
        weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
        with pytest.raises(TamperedFileError, match=WEIGHTS):
            push_family(run, "ns/fam")
        shutil.rmtree(run / "generation-2")
        with pytest.raises(PublishError, match="has another generation 2 for a member"):
            push_family(run, "ns/fam")
        with pytest.raises(ValueError, match="no finished generation"):
            push_family(tmp_path / "none", "ns/fam")
        assert not hub.requests

    def test_a_teacher_that_is_not_published(self, hub, never_killed):
        student, teacher = never_killed / "generation-1", str(never_killed / "generation-0")
        with pytest.raises(ValueError, match="say where it is published"):
            push_generation(student, "ns/x", teacher=teacher)
        with pytest.raises(HubError, match="ns/fam-gen0"):
            push_generation(student, "ns/fam-gen1")
        with pytest.raises(PublishError, match="does not end in -gen1"):
            push_generation(student, "ns/student")
        assert not hub.repositories


class TestTokens:
    @pytest.mark.parametrize("token", ["hf_theirs", "hf_unknown"])
    def test_another_users_name(self, hub, never_killed, token, caplog):
        with pytest.raises(HubError, match="hf auth login") as caught:
            push_family(never_killed, "ns/fam", token=token)
        assert token not in str(caught.value) + caplog.text
        assert not hub.repositories

    @pytest.mark.parametrize("token", ["hf_secret\0", "hf_sécret", "hf_a b"])
    def test_what_is_no_token_is_said_without_it(self, hub, never_killed, token, caplog):
        with pytest.raises(HubError, match="the token has characters") as caught:
            push_family(never_killed, "ns/fam", token=token)
        assert token not in str(caught.value) + caplog.text
        assert not hub.requests

    @pytest.mark.parametrize("token", ["hf_ours\n", " hf_ours"])
    def test_a_token_from_a_file_has_a_line_break(self, hub, never_killed, token):
        push_generation(never_killed / "generation-0", "ns/fam-gen0", token=token)
        assert {r.token for r in hub.requests if "/api/" in r.path} == {"hf_ours"}

    def test_a_token_that_is_given_is_used_to_read_back_and_is_in_no_log(
        self, hub, never_killed, monkeypatch, caplog
    ):
        caplog.set_level(logging.DEBUG)
        monkeypatch.setenv("HF_TOKEN", "")
        hub.fail(3, "error", times=3)
        push_family(never_killed, "ns/fam", private=True, token="hf_ours")
        assert [r for r in caplog.records if r.name.startswith("ban_hf")]
        assert not [r for r in caplog.records if "hf_ours" in r.getMessage()]
        with pytest.raises(UnverifiableError):
            verify_lineage("ns/fam")

    def test_offline(self, hub, never_killed, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
            push_family(never_killed, "ns/fam")


class TestPrivate:
    @pytest.mark.parametrize("is_made_by_hand", [False, True])
    def test_what_others_can_read_gets_no_weights(self, hub, never_killed, is_made_by_hand):
        hub.ignores_private = not is_made_by_hand
        if is_made_by_hand:
            hub.commit("ns/fam-gen0", {}, "Made by hand")
        with pytest.raises(PublishError, match="should be private, but"):
            push_family(never_killed, "ns/fam", private=True)
        assert list(hub.repositories) == ["ns/fam-gen0"]
        assert set(hub.repositories["ns/fam-gen0"].files()) <= {".gitattributes"}
        assert not written(hub)

    def test_what_comes_of_a_private_teacher_is_private_unless_it_is_said(
        self, hub, never_killed, grown
    ):
        push_family(never_killed, "ns/fam", private=True)
        push_family(grown, "ns/fam")
        assert all(repo.private for repo in hub.repositories.values())
        verify_lineage("ns/fam")
        student = grown / "generation-1"
        push_generation(student, "ns/open", teacher="ns/fam-gen0", private=False)
        assert not hub.repositories["ns/open"].private
        refuses(hub, "should be public, but is private", grown, private=False)
