"""A family of language models: its records, its ensemble, killed and gone on with."""

import copy

import pytest
import torch
import torch.nn.functional as F
from family import KillAt, Killed, final_weights
from tiny import VOCABULARY, arguments, gpt2, lstm, text, windows
from transformers import (
    AutoModelForCausalLM,
    default_data_collator,
    pipeline,
)

from ban_hf import BornAgainEnsemble, LSTMForCausalLM, create_language_model, train_generations
from ban_hf.data import describe_data, word_tokenizer

WORDS = ["<eos>", "<unk>", *(f"w{i}" for i in range(VOCABULARY - 2))]


def network(generation: int) -> LSTMForCausalLM:
    return create_language_model("lstm_200", words=WORDS, hidden_size=8, dropout=0.2)


def family(folder, generations=1, train=None, callbacks=None, **overrides):
    """15 windows an epoch, two epochs a generation, a checkpoint every 4 steps."""
    options = dict(
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        max_steps=-1,
        num_train_epochs=2,
        learning_rate=1.0,
        save_strategy="steps",
        save_steps=4,
        eval_strategy="epoch",
    )
    return train_generations(
        network,
        arguments(folder, **options | overrides),
        generations=generations,
        train_dataset=windows() if train is None else train,
        eval_dataset=windows(100, seed=1, warmup=7),
        test_dataset=windows(150, seed=2, warmup=7),
        data_collator=default_data_collator,
        processing_class=word_tokenizer(WORDS),
        callbacks=callbacks,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language") / "family"
    return folder, family(folder)


def test_language_models_learn_with_labels_unless_told_otherwise(trained, tmp_path):
    _, lineage = trained
    assert lineage.generations[1].objective.label_weight == 1.0
    assert lineage.generations[1].training.arguments["label_weight"] == 1.0
    ban = family(tmp_path / "BAN", label_weight=0.0)
    assert ban.generations[1].objective.label_weight == 0.0


def test_the_arguments_of_the_caller_stay_as_they_are(tmp_path):
    args = arguments(tmp_path, per_device_train_batch_size=4, max_steps=1)
    before = copy.deepcopy(args.to_dict())
    data = dict(train_dataset=windows(), data_collator=default_data_collator)
    train_generations(network, args, generations=0, **data)
    assert args.to_dict() == before
    assert args.label_weight is None


def test_a_record_names_perplexity_over_the_words_of_the_test(trained):
    _, lineage = trained
    for record in (*lineage.generations, lineage.ensemble):
        metrics = {m.name: m for m in record.metrics}
        assert metrics["perplexity"].n == 149
        assert not metrics["perplexity"].higher_is_better
        assert metrics["perplexity"].value < 1.2 * VOCABULARY
    assert lineage.generations[0].data["train"]["items"] == 4 * 99


def test_a_generation_writes_text_from_its_folder(trained):
    folder, _ = trained
    for name in ("generation-0", "generation-1"):
        write = pipeline("text-generation", model=str(folder / name), device="cpu")
        options = dict(max_new_tokens=5, do_sample=False, eos_token_id=None)
        written = write("w3 w4 w5", **options)[0]["generated_text"]
        assert written.startswith("w3 w4 w5 ")
        words = written.split()
        assert len(words) == 8
        model = AutoModelForCausalLM.from_pretrained(folder / name)
        ids = torch.tensor([[WORDS.index(word) for word in words]])
        with torch.no_grad():
            best = model(ids).logits[0, 2:-1].argmax(1)
        assert best.tolist() == ids[0, 3:].tolist()


def test_another_text_is_refused_and_nothing_is_lost(trained):
    folder, _ = trained
    before = final_weights(folder)
    with pytest.raises(ValueError, match=r"holds a run of other arguments.*train"):
        family(folder, train=windows(seed=9))
    assert final_weights(folder) == before


def test_a_text_is_described_by_its_words_and_not_by_its_columns():
    assert describe_data(windows(columns=4, warmup=7)) == describe_data(
        windows(columns=2, warmup=7)
    )
    assert describe_data(windows()) != describe_data(windows(window=5))
    assert describe_data(windows()) != describe_data(windows(seed=1))


@pytest.mark.parametrize(("generation", "step"), [(1, 17)])
def test_a_family_that_was_killed_in_mid_epoch_ends_the_same(trained, tmp_path, generation, step):
    folder, _ = trained
    with pytest.raises(Killed):
        family(tmp_path / "family", callbacks=[KillAt(generation, step)])
    lineage = family(tmp_path / "family")
    resumed = lineage.generations[generation].training.resumed_from
    assert resumed == f"checkpoint-{step - step % 4}"
    assert final_weights(tmp_path / "family") == final_weights(folder)


# The ensemble


def members():
    return [lstm(1).eval(), lstm(2, hidden_size=6).eval()]


def test_the_loss_of_an_ensemble_shifts_once():
    ensemble, tokens = BornAgainEnsemble.from_members(members()), text(24).view(2, 12)
    with torch.no_grad():
        outputs = ensemble(input_ids=tokens, labels=tokens)
        expected = F.cross_entropy(
            outputs.logits[:, :-1].reshape(-1, VOCABULARY), tokens[:, 1:].reshape(-1)
        )
        assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-6)
        shifted = ensemble(input_ids=tokens[:, :-1], shift_labels=tokens[:, 1:].clone()).loss
    assert shifted.item() == pytest.approx(expected.item(), rel=1e-6)


def test_members_with_other_words_are_refused():
    with pytest.raises(ValueError, match=r"members\[1\] has another vocabulary"):
        BornAgainEnsemble.from_members([lstm(1), lstm(2, vocab_size=VOCABULARY + 1)])
    BornAgainEnsemble.from_members([network(0), gpt2(1)])  # of which one does not say its words
    other = create_language_model("lstm_200", words=WORDS[::-1], hidden_size=8)
    with pytest.raises(ValueError, match=r"members\[1\] has another vocabulary"):
        BornAgainEnsemble.from_members([network(0), other])


def test_a_test_of_other_columns_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ValueError, match="test_dataset is laid out in 4 columns"):
        family(tmp_path / "family", per_device_eval_batch_size=2)
    assert not (tmp_path / "family").exists()
