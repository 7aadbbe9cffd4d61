"""Truncated back-propagation through time: against a hand-written loop, and resumed half-way."""

import math

import pytest
import torch
import torch.nn.functional as F
from cached_students import KillAt
from family import Killed
from tiny import VOCABULARY, distance, gpt2, history, lstm, reader, text, weights, windows
from transformers.trainer_utils import get_last_checkpoint

from ban_hf import BornAgainEnsemble, CharCNNLSTMForCausalLM, create_language_model
from ban_hf.data import word_tokenizer
from ban_hf.tasks.auto import TASKS
from ban_hf.tasks.pairing import pair


def by_hand(student, teacher, data, *, epochs=2, teacher_weight=1.0, label_weight=1.0):
    """The same training in plain PyTorch: states carried, detached, reset at each epoch."""
    student.train()
    if teacher is not None:
        teacher.eval()
    for _ in range(epochs):
        state = teacher_state = None
        for start in range(0, data.length, data.window):
            words = data.input_ids[:, start : start + data.window]  # (B, T)
            targets = data.targets[:, start : start + data.window]  # (B, T)
            outputs = student(words, state=state)
            state = tuple(part.detach() for part in outputs.state)
            logp = outputs.logits.log_softmax(-1)  # (B, T, V)
            losses = -logp.gather(-1, targets[..., None])[..., 0]  # (B, T)
            if teacher is not None:
                with torch.no_grad():
                    taught = teacher(words, state=teacher_state)
                teacher_state = taught.state
                p = taught.logits.softmax(-1)  # (B, T, V)
                losses = label_weight * losses - teacher_weight * (p * logp).sum(-1)
            student.zero_grad()
            losses.mean().backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 0.25)
            with torch.no_grad():
                for parameter in student.parameters():
                    parameter -= 1.0 * parameter.grad
    return student


def perplexity_by_hand(model, tokens) -> float:
    """One pass over a whole text."""
    with torch.no_grad():
        logits = model.eval()(tokens[None, :-1]).logits[0]  # (n - 1, V)
    return math.exp(F.cross_entropy(logits.double(), tokens[1:]).item())


@pytest.mark.parametrize(
    "case",
    [
        dict(teacher=None),
        dict(teacher=lstm, label_weight=0.0),
        dict(teacher=lstm, teacher_weight=0.3, label_weight=0.7),
    ],
    ids=["labels", "BAN", "weighted"],
)
def test_the_trainer_and_a_hand_written_loop_come_to_the_same_weights(case, tmp_path):
    make, options = case["teacher"], {k: v for k, v in case.items() if k != "teacher"}
    expected = by_hand(lstm(1), make and make(2), windows(), **options)
    trainer = reader(lstm(1), tmp_path, make and make(2), **options)
    trainer.train()
    assert distance(expected, lstm(1)) > 0.05
    assert distance(trainer.model, expected) < 1e-6
    assert trainer.evaluate()["eval_perplexity"] == pytest.approx(
        perplexity_by_hand(expected, text(200, seed=1)), rel=1e-4
    )


def test_without_carried_state_the_weights_would_be_others(tmp_path):
    """The equality above can fail: the windows of one pass are not independent of one another."""
    trainer = reader(lstm(1), tmp_path, lstm(2))
    trainer.carried.recurrent.clear()
    trainer.train()
    assert distance(trainer.model, by_hand(lstm(1), lstm(2), windows())) > 1e-3


def test_an_evaluation_in_mid_epoch_does_not_disturb_the_training(tmp_path):
    quiet, disturbed = (
        reader(lstm(1), tmp_path, lstm(2), num_train_epochs=1, eval_steps=4, eval_strategy=strategy)
        for strategy in ("no", "steps")
    )
    quiet.train()
    disturbed.train()
    assert sum("eval_perplexity" in line for line in history(disturbed)) > 2
    assert distance(quiet.model, disturbed.model) == 0


def test_perplexity_does_not_depend_on_the_evaluation_batch_size(tmp_path):
    trainer = reader(lstm(1), tmp_path, optim="adamw_torch", learning_rate=0.03, num_train_epochs=5)
    trainer.train()
    tokens = text(500, seed=5)
    exact = perplexity_by_hand(trainer.model, tokens)
    assert exact < 0.8 * VOCABULARY  # it has learnt something
    for columns in (1, 3, 8):
        trainer.args.per_device_eval_batch_size = columns
        measured = trainer.evaluate(windows(500, columns, seed=5, warmup=14))
        assert measured["eval_perplexity"] == pytest.approx(exact, rel=1e-3)
        assert measured["eval_perplexity"] == pytest.approx(math.exp(measured["eval_loss"]))


def test_an_evaluation_compares_with_the_teacher_word_by_word(tmp_path):
    student, teacher, tokens = lstm(1), lstm(2), text(200, seed=1)
    measured = reader(student, tmp_path, teacher, evaluation=windows(200, 4, seed=1, warmup=70))
    measured = measured.evaluate()
    with torch.no_grad():
        z, t = (m.eval()(tokens[None, :-1]).logits[0].double() for m in (student, teacher))
    divergence = (t.softmax(1) * (t.log_softmax(1) - z.log_softmax(1))).sum(1).mean()
    assert measured["eval_teacher_kl"] == pytest.approx(divergence.item(), rel=1e-3)
    agreement = 100 * (z.argmax(1) == t.argmax(1)).double().mean()
    assert measured["eval_teacher_agreement"] == pytest.approx(agreement.item(), abs=0.6)


# Killed and resumed


@pytest.mark.parametrize(
    ("teacher", "save_steps"),
    [(None, 2), (lstm, 5), (lstm, 7)],
    ids=["mid-epoch", "epoch's end", "second epoch"],
)
def test_a_training_that_was_killed_half_way_goes_on_bit_for_bit(teacher, save_steps, tmp_path):
    def make(folder, **options):
        student = lstm(1, dropout=0.3)
        torch.manual_seed(0)
        options |= dict(save_strategy="steps", save_steps=save_steps, save_total_limit=1)
        return reader(student, tmp_path / folder, teacher and teacher(2), windows(120), **options)

    whole = make("whole")
    assert len(whole.train_dataset) // 4 == 5  # windows of an epoch
    whole.train()
    killed = make("killed", callbacks=[KillAt(save_steps + 1)])
    with pytest.raises(Killed):
        killed.train()
    resumed = make("killed")
    resumed.train(resume_from_checkpoint=True)
    assert distance(whole.model, resumed.model) == 0
    assert history(whole)[-1] == history(resumed)[-1]


def test_a_checkpoint_without_states_is_refused(tmp_path):
    options = dict(save_strategy="steps", save_steps=4)
    with pytest.raises(Killed):
        reader(lstm(1), tmp_path, lstm(2), callbacks=[KillAt(5)], **options).train()
    checkpoint = get_last_checkpoint(str(tmp_path))
    (tmp_path / "checkpoint-4" / "carried_state_0.pth").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-4 has no carried_state_0\.pth"):
        reader(lstm(1), tmp_path, lstm(2), **options).train(resume_from_checkpoint=checkpoint)


# Who may teach whom


def char_cnn(seed: int) -> CharCNNLSTMForCausalLM:
    torch.manual_seed(seed)
    words = ["<eos>", "<unk>", *(f"w{i}" for i in range(VOCABULARY - 2))]
    return create_language_model(
        "char_cnn_lstm_small",
        words=words,
        hidden_size=8,
        filter_widths=(1, 2),
        filter_counts=(4, 4),
    )


def ensemble(seed: int) -> BornAgainEnsemble:
    return BornAgainEnsemble.from_members([lstm(seed), lstm(seed + 10, hidden_size=6)])


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (lstm, char_cnn),
        (char_cnn, lstm),
        (lstm, gpt2),
        (gpt2, lstm),
        (lstm, ensemble),
    ],
    ids=["from characters", "to characters", "from a transformer", "to a transformer", "ensemble"],
)
def test_any_language_model_teaches_any_other(student, teacher, tmp_path):
    options = dict(label_weight=0.0, optim="adamw_torch", learning_rate=0.04, num_train_epochs=2)
    trainer = reader(student(1), tmp_path, teacher(2), **options)
    before = weights(trainer.teacher)
    first = trainer.evaluate()["eval_teacher_kl"]
    trainer.train()
    assert trainer.evaluate()["eval_teacher_kl"] < 0.8 * first
    assert distance(trainer.teacher, before) == 0


def test_a_window_trains_every_target_of_a_transformer_too(tmp_path):
    """`shift_labels` reach a model that takes them as a keyword; no window loses its last word."""
    data = windows()
    trainer = reader(gpt2(1), tmp_path, max_steps=1, learning_rate=0.0)
    trainer.train()
    with torch.no_grad():
        logits = gpt2(1)(data.input_ids[:, :7]).logits.reshape(-1, VOCABULARY)  # (28, V)
    expected = F.cross_entropy(logits, data.targets[:, :7].reshape(-1)).item()
    assert history(trainer)[0]["loss"] == pytest.approx(expected, rel=1e-5)


# Bad input


def test_a_state_of_other_rows_is_refused():
    model, words = lstm(1), text(12).view(4, 3)
    with pytest.raises(ValueError, match="state"):
        model(words[:2], state=model(words).state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(gradient_accumulation_steps=2),
            "would not mean a larger batch.*per_device_train_batch",
        ),
        (dict(auto_find_batch_size=True), "auto_find_batch_size would read TokenWindows out of"),
        (dict(ignore_data_skip=True), "ignore_data_skip would read TokenWindows out of order"),
        (
            dict(accelerator_config={"split_batches": True}),
            "accelerator_config.split_batches would read TokenWindows out of order",
        ),
        (
            dict(per_device_train_batch_size=8),
            "4 columns, but a batch has 8 items on each of 1 process",
        ),
        (
            dict(evaluation={"a": windows(columns=3)}),
            r"eval_dataset\['a'\].* TokenWindows\(tokens, columns=4\), or set per_device_eval",
        ),
    ],
)
def test_what_would_read_a_text_in_another_order_is_refused(changes, message, tmp_path):
    trainer = reader(lstm(1), tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


def test_gradient_accumulation_is_a_larger_batch_for_a_transformer(tmp_path):
    reader(gpt2(1), tmp_path, gpt2(2), gradient_accumulation_steps=2, max_steps=1).train()


def test_smoothed_labels_that_would_not_be_shifted_are_refused(tmp_path):
    options = dict(label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="would smooth other labels"):
        reader(lstm(1), tmp_path, **options).train()
    with pytest.raises(ValueError, match="would smooth other labels"):
        reader(gpt2(1), tmp_path, **options).train()
    trainer = reader(lstm(1), tmp_path, lstm(2), max_steps=1, learning_rate=0.0, **options)
    trainer.train()
    data, losses = windows(), []
    with torch.no_grad():
        logits = lstm(1)(data.input_ids[:, :7]).logits.reshape(-1, VOCABULARY)  # (28, V)
        losses = F.cross_entropy(logits, data.targets[:, :7].reshape(-1), label_smoothing=0.1)
    assert history(trainer)[0]["label_loss"] == pytest.approx(losses.item(), rel=1e-5)


def test_a_text_that_is_given_later_is_read_in_order_also_after_an_evaluation_that_failed(tmp_path):
    def fail(prediction):
        raise RuntimeError

    trainer = reader(lstm(1), tmp_path, data=[], num_train_epochs=1)
    trainer.compute_metrics = fail
    with pytest.raises(RuntimeError):
        trainer.evaluate()
    trainer.train_dataset = windows()
    trainer.train()
    assert distance(trainer.model, by_hand(lstm(1), None, windows(), epochs=1)) < 1e-6


def test_a_loss_beyond_every_perplexity_is_infinite_and_no_crash(tmp_path):
    model = lstm(1)
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.arange(VOCABULARY) * 1e4)
    assert reader(model, tmp_path).evaluate()["eval_perplexity"] == math.inf


def test_a_fresh_teacher_is_not_taken_for_the_working_directory(tmp_path, monkeypatch):
    word_tokenizer(["<eos>", "another"]).save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    ours = word_tokenizer(["<eos>", "<unk>", *(f"w{i}" for i in range(VOCABULARY - 2))])
    pair(TASKS["text-generation"], lstm(2), lstm(1), ours)


def test_a_teacher_with_its_words_in_another_order_is_refused(tmp_path):
    words = [f"w{i}" for i in range(VOCABULARY)]
    student, teacher = (
        create_language_model("lstm_200", words=order, hidden_size=8)
        for order in (words, words[::-1])
    )
    with pytest.raises(ValueError, match="the same in another order"):
        reader(student, tmp_path, teacher)
