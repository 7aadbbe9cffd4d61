"""A teacher that sees otherwise than its student, each against a computation by torch alone."""

from pathlib import Path

import datasets
import pytest
import torch
import torch.nn.functional as F
from tiny import (
    CLASSES,
    arguments,
    bert,
    cifar,
    distance,
    gpt2,
    history,
    lstm,
    vit,
    weights,
    windows,
)
from tokenizers import Tokenizer, models
from torch import nn
from transformers import (
    ConvNextImageProcessor,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    default_data_collator,
)

from ban_hf import (
    BANTrainer,
    BornAgainEnsemble,
    ImageViews,
    collate,
    image_processor,
    train_generations,
)
from ban_hf.jobs.evaluation import evaluate
from ban_hf.jobs.job import Setup
from ban_hf.jobs.training import load_model, measure, measuring_trainer
from ban_hf.tasks.auto import TASKS, task_of
from ban_hf.tasks.pairing import PixelFormat, pair, pixel_format

ROWS = 16


def divergence(teacher_logits: torch.Tensor, student_logits: torch.Tensor) -> torch.Tensor:
    """The mean of KL(teacher || student), with the student's graph."""
    logp, logq = teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)
    return (logp.exp() * (logp - logq)).sum(-1).mean()


def stepped(student: nn.Module, loss: torch.Tensor, learning_rate: float = 0.1) -> dict:
    """A student's weights after a step of SGD."""
    loss.backward()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter -= learning_rate * parameter.grad
    return weights(student)


def one_step(folder, student: nn.Module, teacher, data, **options) -> BANTrainer:
    """A trainer that has made one step of 16 rows, and evaluated before it."""
    names = {"processing_class", "data_collator"} & options.keys()
    given = {name: options.pop(name) for name in names}
    settings = dict(max_steps=1, lr_scheduler_type="constant", per_device_eval_batch_size=5)
    args = arguments(folder, **settings | options)
    trainer = BANTrainer(
        student, args, teacher=teacher, train_dataset=data, eval_dataset=data, **given
    )
    trainer.measured_before = trainer.evaluate()
    trainer.train()
    return trainer


def assert_learns(trainer: BANTrainer, start: nn.Module, logits: torch.Tensor, mine) -> None:
    """A step, its log and an evaluation are those of a teacher with these logits.

    `mine` gives the student's logits.
    """
    loss = divergence(logits, mine(start))
    assert loss > 1e-3
    assert history(trainer)[-1]["teacher_loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert trainer.measured_before["eval_teacher_kl"] == pytest.approx(loss.item(), rel=1e-4)
    agree = 100 * (logits.argmax(-1) == mine(start).argmax(-1)).float().mean().item()
    assert trainer.measured_before["eval_teacher_agreement"] == pytest.approx(agree, rel=1e-4)
    before = weights(start)
    after = stepped(start, loss)
    assert distance(trainer.model, after) < 1e-6
    assert max(float((after[k] - before[k]).abs().max()) for k in after) > 1e-4


# Columns


def distilbert(seed: int = 0) -> DistilBertForSequenceClassification:
    """A text classifier without token types, and without dropout."""
    torch.manual_seed(seed)
    sizes = dict(vocab_size=30, dim=16, hidden_dim=32, n_layers=1, n_heads=2)
    none = dict(dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0)
    config = DistilBertConfig(**sizes, **none, max_position_embeddings=8, num_labels=CLASSES)
    return strict(DistilBertForSequenceClassification(config))


def strict(model: nn.Module) -> nn.Module:
    """A model that fails where it is given token types, which it would take without a word."""

    def check(_, __, given: dict) -> None:
        assert "token_type_ids" not in given

    model.register_forward_pre_hook(check, with_kwargs=True)
    return model


def typed(seed: int = 0) -> nn.Module:
    """A BERT whose answer depends on its token types, and has no dropout."""
    model = bert(seed)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        model.bert.embeddings.token_type_embeddings.weight.mul_(100)
        model.classifier.weight.mul_(30)
    return model


def sentences(n: int = ROWS, seed: int = 0) -> datasets.Dataset:
    """Pairs of sentences, as a tokenizer of BERT gives them."""
    rng = torch.Generator().manual_seed(seed)
    columns = {
        "input_ids": torch.randint(1, 30, (n, 6), generator=rng).tolist(),
        "attention_mask": [[1] * 5 + [0]] * n,
        "token_type_ids": torch.randint(0, 2, (n, 6), generator=rng).tolist(),
        "label": torch.randint(0, CLASSES, (n,), generator=rng).tolist(),
        "text": ["two films"] * n,
    }
    return datasets.Dataset.from_dict(columns)


def answers(model: nn.Module, data: datasets.Dataset, *names: str) -> torch.Tensor:
    """A model's logits of some columns, and no others."""
    columns = {name: torch.tensor(data[name]) for name in ("input_ids", "attention_mask", *names)}
    return model.eval()(**columns).logits


@torch.no_grad()
def with_types(model: nn.Module, data: datasets.Dataset) -> torch.Tensor:
    found = answers(model, data, "token_type_ids")
    assert (found - answers(model, data)).abs().max() > 0.1
    return found


@pytest.mark.parametrize("whole", [False, True], ids=["columns removed", "columns kept"])
def test_a_teacher_gets_the_columns_that_its_student_does_not_take(whole, tmp_path):
    data, teacher = sentences(), typed(2)
    if whole:
        data = data.remove_columns("text")
    trainer = one_step(tmp_path, distilbert(1), teacher, data, remove_unused_columns=not whole)
    logits = with_types(typed(2), data)
    assert_learns(trainer, distilbert(1), logits, lambda model: answers(model, data))


def test_a_student_with_more_columns_keeps_them_from_its_teacher(tmp_path):
    data, student = sentences(), typed(1)
    teacher = distilbert(2)
    with torch.no_grad():
        teacher.classifier.weight.mul_(30)
    seen = []
    teacher.register_forward_pre_hook(
        lambda _, __, given: seen.append(set(given)), with_kwargs=True
    )
    one_step(tmp_path, student, teacher, data)
    assert seen
    assert all(names == {"input_ids", "attention_mask"} for names in seen)


def test_an_ensemble_gives_each_member_its_own_columns(tmp_path):
    data, members = sentences(), [typed(2), distilbert(3)]
    ensemble = BornAgainEnsemble.from_members(members)
    strict(ensemble.members[1])
    trainer = one_step(tmp_path, distilbert(1), ensemble, data)
    with torch.no_grad():
        own = with_types(members[0], data), answers(members[1], data)
        mean = sum(logits.softmax(-1) for logits in own) / 2
    assert_learns(trainer, distilbert(1), mean.log(), lambda model: answers(model, data))


def test_a_sequence_measures_a_student_beside_a_teacher_with_other_columns(tmp_path):
    test = sentences(7, seed=1)
    args = arguments(tmp_path, max_steps=2)

    def network(generation: int) -> nn.Module:
        seed = int(torch.initial_seed() % 1000)
        return distilbert(seed) if generation else typed(seed)

    lineage = train_generations(
        network, args, generations=1, train_dataset=sentences(), test_dataset=test, ensemble=False
    )
    teacher, student = (load_model(tmp_path / f"generation-{k}") for k in (0, 1))
    with torch.no_grad():
        expected = divergence(with_types(teacher, test).double(), answers(student, test).double())
    found = lineage.records[1].metric("teacher_kl", "test")
    assert found == pytest.approx(expected.item(), rel=1e-5)
    trainer = measuring_trainer(student, Setup(network, test), args, tmp_path)
    again = measure([strict(student)], Setup(network, test, test_dataset=test), trainer, teacher, 0)
    assert again["test"]["teacher_kl"] == pytest.approx(expected.item(), rel=1e-5)


def test_an_ensemble_is_measured_with_the_columns_that_its_members_take(tmp_path):
    rng, data = torch.Generator().manual_seed(3), sentences()
    positions = torch.stack([torch.randperm(6, generator=rng) for _ in range(ROWS)])
    data = data.add_column("position_ids", positions.tolist())
    ensemble = BornAgainEnsemble.from_members([distilbert(1), typed(2)])
    setup = Setup(lambda generation: ensemble, data, test_dataset=data)
    trainer = measuring_trainer(ensemble, setup, arguments(tmp_path), tmp_path)
    found = measure([ensemble], setup, trainer, None, 0)["test"]
    with torch.no_grad():
        own = [
            answers(ensemble.members[0], data, "position_ids"),
            answers(ensemble.members[1], data, "position_ids", "token_type_ids"),
        ]
    mean = sum(logits.double().softmax(-1) for logits in own) / 2
    expected = F.nll_loss(mean.log(), torch.tensor(data["label"]))
    assert found["nll"] == pytest.approx(expected.item(), rel=1e-5)


# Pixels


OURS = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
THEIRS = (0.1, 0.2, 0.45), (0.5, 0.6, 0.2)


def pixels(n: int = ROWS) -> torch.Tensor:
    """Images `(n, 3, 8, 8)` of values from 0 to 1."""
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def normalized(images: torch.Tensor, mean, std) -> torch.Tensor:
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def photographs(mean, std, n: int = ROWS) -> list[dict]:
    rng = torch.Generator().manual_seed(1)
    labels = torch.randint(0, CLASSES, (n,), generator=rng)
    images = normalized(pixels(n), mean, std)
    return [{"pixel_values": x, "labels": y} for x, y in zip(images, labels, strict=True)]


def strong(seed: int, **overrides) -> nn.Module:
    """A ViT whose classes differ by its images."""
    model = vit(seed, initializer_range=0.3, **overrides)
    with torch.no_grad():
        model.classifier.weight.mul_(3)
    return model


def saved(folder: Path, model: nn.Module, size: int, mean, std) -> Path:
    model.save_pretrained(folder)
    image_processor(size, mean, std).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("by_name", [True, False], ids=["by folder", "as a model"])
def test_a_teacher_gets_pixels_as_it_normalizes_them(by_name, tmp_path):
    folder = saved(tmp_path / "teacher", strong(2), 8, *THEIRS)
    teacher = folder if by_name else load_model(folder)
    processor = image_processor(8, *OURS)
    data = photographs(*OURS)
    trainer = one_step(tmp_path / "run", strong(1), teacher, data, processing_class=processor)
    ours, theirs = (normalized(pixels(), *form) for form in (OURS, THEIRS))
    with torch.no_grad():
        logits = strong(2).eval()(theirs).logits
        assert divergence(logits, strong(2).eval()(ours).logits) > 1e-2
    assert_learns(trainer, strong(1), logits, lambda model: model(ours).logits)


@pytest.mark.parametrize("size", [4, 16])
def test_a_teacher_gets_pixels_of_its_size(size, tmp_path):
    patches = dict(image_size=size, patch_size=size // 2)
    folder = saved(tmp_path / "teacher", strong(2, **patches), size, *THEIRS)
    processor = image_processor(8, *OURS)
    data = photographs(*OURS)
    trainer = one_step(tmp_path / "run", strong(1), folder, data, processing_class=processor)
    theirs = F.interpolate(pixels(), (size, size), mode="bilinear", antialias=True)
    with torch.no_grad():
        logits = strong(2, **patches).eval()(normalized(theirs, *THEIRS)).logits
    ours = normalized(pixels(), *OURS)
    assert_learns(trainer, strong(1), logits, lambda model: model(ours).logits)


def test_where_formats_are_the_same_or_one_is_unknown_pixels_stay(tmp_path):
    same = saved(tmp_path / "same", strong(2), 8, *OURS)
    strong(2).save_pretrained(tmp_path / "unknown")
    task, ours = TASKS["image-classification"], image_processor(8, *OURS)
    for folder, processor in ((same, ours), (tmp_path / "unknown", ours), (same, None)):
        found = pair(task, load_model(folder), strong(1), processor, folder)
        inputs = {"pixel_values": pixels()}
        assert found.teacher_inputs(inputs)["pixel_values"] is inputs["pixel_values"]


def test_an_ensemble_of_networks_that_say_what_they_read_gets_it(tmp_path):
    known = dict(image_size=32, image_mean=THEIRS[0], image_std=THEIRS[1])
    members = [cifar(seed, **known).eval() for seed in (2, 3)]
    ensemble = BornAgainEnsemble.from_members(members)
    task, student = TASKS["image-classification"], cifar(1)
    found = pair(task, ensemble, student, image_processor(32, *OURS))
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    given = found.teacher_inputs({"pixel_values": normalized(images, *OURS)})
    expected = normalized(images, *THEIRS)
    assert torch.allclose(given["pixel_values"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(), PixelFormat(24, (0.5,) * 3, (0.25,) * 3)),
        (dict(do_normalize=False), PixelFormat(24, (0.0,) * 3, (1.0,) * 3)),
        (dict(rescale_factor=2 / 255), PixelFormat(24, (0.25,) * 3, (0.125,) * 3)),
        (dict(do_rescale=False), PixelFormat(24, (0.5 / 255,) * 3, (0.25 / 255,) * 3)),
        (dict(do_resize=False), PixelFormat(None, (0.5,) * 3, (0.25,) * 3)),
        (dict(size={"height": 24, "width": 32}), PixelFormat(None, (0.5,) * 3, (0.25,) * 3)),
    ],
)
def test_a_format_is_what_the_processor_makes_of_pixels(changes, expected):
    processor = image_processor(24, (0.5,) * 3, (0.25,) * 3)
    for name, value in changes.items():
        setattr(processor, name, value)
    found = pixel_format(processor.to_dict(), vit().config)
    assert found.size == expected.size
    assert found.mean == pytest.approx(expected.mean)
    assert found.std == pytest.approx(expected.std)
    if found.size is None:
        return
    image = torch.randint(0, 256, (3, 24, 24), generator=torch.Generator().manual_seed(0))
    made = processor(image.to(torch.uint8), return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(made, normalized(image / 255, found.mean, found.std), atol=1e-3)


def test_a_crop_is_of_the_size_that_the_teacher_reads(tmp_path):
    crops = dict(do_center_crop=True, crop_size={"height": 20, "width": 20})
    processor = image_processor(24, *OURS).to_dict() | crops
    assert pixel_format(processor, vit().config).size == 20
    edge = ConvNextImageProcessor(size={"shortest_edge": 24}).to_dict()
    assert pixel_format(edge, vit().config).size is None


def views(mean, std) -> ImageViews:
    images = (pixels() * 255).to(torch.uint8)
    labels = torch.arange(ROWS) % CLASSES
    return ImageViews(images, labels, [f"LABEL_{i}" for i in range(CLASSES)], mean=mean, std=std)


def test_a_cache_holds_what_the_teacher_gave_and_knows_what_it_read(tmp_path):
    folder = saved(tmp_path / "teacher", strong(2), 8, *THEIRS)
    runs = []
    for name, cache in (("online", None), ("fills", "cache"), ("replays", "cache")):
        trainer = one_step(
            tmp_path / name,
            strong(1),
            folder,
            views(*OURS),
            processing_class=image_processor(8, *OURS),
            data_collator=collate,
            remove_unused_columns=False,
            teacher_cache=cache and str(tmp_path / cache),
        )
        runs.append(trainer.model)
    assert distance(runs[0], runs[1]) == distance(runs[0], runs[2]) == 0
    with pytest.raises(ValueError, match="pixels"):
        one_step(
            tmp_path / "other",
            strong(1),
            folder,
            views(*OURS),
            data_collator=collate,
            remove_unused_columns=False,
            teacher_cache=str(tmp_path / "cache"),
        )


# Classes


NAMES, PERMUTED = "ant bee cow dog elk", "elk bee ant cow dog"
ORDER = [PERMUTED.split().index(name) for name in NAMES.split()]


def named(labels: str, seed: int) -> nn.Module:
    id2label = dict(enumerate(labels.split()))
    return strong(seed, id2label=id2label, label2id={name: i for i, name in id2label.items()})


@pytest.mark.parametrize("cached", [False, True])
def test_classes_in_another_order_are_mapped_by_name(cached, tmp_path):
    data, options = views(*OURS), dict(data_collator=collate, remove_unused_columns=False)
    if cached:
        options["teacher_cache"] = str(tmp_path / "cache")
    trainer = one_step(tmp_path / "run", named(NAMES, 1), named(PERMUTED, 2), data, **options)
    batch = data.__getitems__(range(ROWS))["pixel_values"]
    with torch.no_grad():
        logits = named(PERMUTED, 2).eval()(batch).logits
    expected = torch.stack([logits[:, i] for i in ORDER], 1)
    assert (expected.argmax(1) != logits.argmax(1)).any()
    assert_learns(trainer, named(NAMES, 1), expected, lambda model: model(batch).logits)


def test_a_measurement_maps_classes_and_pixels_as_a_training_does(tmp_path):
    folder = saved(tmp_path / "teacher", named(PERMUTED, 2), 8, *THEIRS)
    student, teacher = named(NAMES, 1), load_model(folder)
    loader = torch.utils.data.DataLoader(photographs(*OURS), 5)
    processor = image_processor(8, *OURS)
    found = evaluate([student], [loader], task_of(student), teacher=teacher, processor=processor)
    with torch.no_grad():
        theirs = teacher(normalized(pixels(), *THEIRS)).logits[:, ORDER]
        ours = student(normalized(pixels(), *OURS)).logits
    expected = divergence(theirs.double(), ours.double()).item()
    agree = 100 * (theirs.argmax(1) == ours.argmax(1)).double().mean().item()
    assert found.metrics()["teacher_kl"] == pytest.approx(expected, rel=1e-4)
    assert found.metrics()["teacher_agreement"] == pytest.approx(agree)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ("ant bee cow dog eel", "none called 'elk', which is class 4 of the model"),
        ("bee bee ant cow dog", "none called 'elk'"),
    ],
)
def test_other_classes_are_refused(theirs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        BANTrainer(named(NAMES, 1), arguments(tmp_path), teacher=named(theirs, 2))


def test_classes_of_one_name_cannot_be_mapped(tmp_path):
    student, teacher = named("ant ant bee cow dog", 1), named("bee ant ant cow dog", 2)
    with pytest.raises(ValueError, match="some have the same name"):
        BANTrainer(student, arguments(tmp_path), teacher=teacher)
    twice = named("ant ant bee cow dog", 2)
    assert pair(TASKS["image-classification"], twice, student).order is None


# Words


WORDS = [f"w{i}" for i in range(18)]


def tokenizer(words: list[str] = WORDS) -> PreTrainedTokenizerFast:
    numbers = {word: i for i, word in enumerate(words)}
    found = Tokenizer(models.WordLevel(numbers, unk_token=words[0]))
    return PreTrainedTokenizerFast(tokenizer_object=found, pad_token=words[0])


def padded(rows: int, seed: int) -> GPT2LMHeadModel:
    """A language model with rows that stand for no word."""
    return gpt2(seed, vocab_size=rows, initializer_range=0.3)


def texts(n: int = ROWS, length: int = 6) -> list[dict]:
    rng = torch.Generator().manual_seed(0)
    words = torch.randint(0, len(WORDS), (n, length), generator=rng)
    return [{"input_ids": row, "labels": row} for row in words]


def with_words(folder: Path, model: nn.Module, words: list[str] = WORDS) -> Path:
    model.save_pretrained(folder)
    tokenizer(words).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("objective", ["kd", "dkd", "cwtm"])
@pytest.mark.parametrize(("ours", "theirs"), [(20, 24), (24, 20)])
def test_padded_vocabularies_are_compared_by_the_words_that_both_have(
    ours, theirs, objective, tmp_path
):
    folder = with_words(tmp_path / "teacher", padded(theirs, 2))
    options = dict(label_weight=0.5, objective=objective, processing_class=tokenizer())
    trainer = one_step(tmp_path / "run", padded(ours, 1), folder, texts(), **options)
    words = torch.stack([item["input_ids"] for item in texts()])  # (B, T)
    labels = words[:, 1:].flatten()
    with torch.no_grad():
        logits = padded(theirs, 2)(words).logits[:, :-1, :20].flatten(0, 1)  # (N, 20)
    student = padded(ours, 1)
    full = student(words).logits[:, :-1].flatten(0, 1)  # (N, ours)
    common, p = full[:, :20], logits.softmax(-1)  # (N, 20) each
    label_loss = F.cross_entropy(full, labels)
    if objective == "kd":
        loss = divergence(logits, common)
    elif objective == "cwtm":
        sure = p.amax(1)
        loss = (sure / sure.sum() * F.cross_entropy(common, labels, reduction="none")).sum()
    else:
        at, q = labels[:, None], common.softmax(-1)
        pt, qt = p.gather(1, at)[:, 0], q.gather(1, at)[:, 0]
        target = pt * (pt / qt).log() + (1 - pt) * ((1 - pt) / (1 - qt)).log()
        off = torch.ones_like(p).scatter(1, at, 0.0).bool()
        rest_p, rest_q = (x[off].view(len(x), -1) for x in (p, q))
        rest_p, rest_q = (x / x.sum(1, keepdim=True) for x in (rest_p, rest_q))
        loss = (target + 8 * (rest_p * (rest_p / rest_q).log()).sum(1)).mean()
    assert history(trainer)[-1]["teacher_loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert history(trainer)[-1]["label_loss"] == pytest.approx(label_loss.item(), rel=1e-4)
    kl = divergence(logits, common).item()
    assert trainer.measured_before["eval_teacher_kl"] == pytest.approx(kl, rel=1e-4)
    assert trainer.measured_before["eval_loss"] == pytest.approx(label_loss.item(), rel=1e-4)
    after = stepped(student, loss + 0.5 * label_loss)
    assert distance(trainer.model, after) < 1e-5


def test_a_measurement_compares_padded_vocabularies_too(tmp_path):
    teacher = load_model(with_words(tmp_path / "teacher", padded(20, 2)))
    student = padded(24, 1).eval()
    loader = torch.utils.data.DataLoader(texts(), 5)
    options = dict(teacher=teacher, processor=tokenizer())
    found = evaluate([student], [loader], task_of(student), **options).metrics()
    words = torch.stack([item["input_ids"] for item in texts()])
    with torch.no_grad():
        ours, theirs = (m(words).logits[:, :-1, :20].double() for m in (student, teacher))
    assert found["teacher_kl"] == pytest.approx(divergence(theirs, ours).item(), rel=1e-5)
    agree = 100 * (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()
    assert found["teacher_agreement"] == pytest.approx(agree)


def test_a_label_that_is_no_word_of_both_is_refused(tmp_path):
    folder = with_words(tmp_path / "teacher", padded(20, 2))
    data = texts()
    data[3] = {"input_ids": data[3]["input_ids"], "labels": torch.full((6,), 21)}
    trainer = BANTrainer(
        padded(24, 1),
        arguments(tmp_path / "run", max_steps=1),
        teacher=folder,
        train_dataset=data,
        processing_class=tokenizer(),
    )
    with pytest.raises(ValueError, match="labels has the value 21"):
        trainer.train()


@pytest.mark.parametrize(
    ("rows", "words", "processor", "message"),
    [
        (24, None, tokenizer(), "vocabulary of 24 and model one of 20, and it is not known"),
        (24, WORDS, None, "give the tokenizer as processing_class"),
        (17, WORDS, tokenizer(), "their tokenizer has 18: build the student with more"),
        (20, [*WORDS[:4], "x", *WORDS[5:]], tokenizer(), "'w4' is 4 here and None in"),
        (24, [*WORDS[:4], "w5", "w4", *WORDS[6:]], tokenizer(), "'w4' is 4 here and 5 in"),
        (20, [*WORDS, "more"], tokenizer(), "'more' is None here and 18 in"),
    ],
)
def test_vocabularies_that_are_not_known_to_be_the_same_are_refused(
    rows, words, processor, message, tmp_path
):
    folder, teacher = tmp_path / "teacher", padded(rows, 2)
    teacher.save_pretrained(folder) if words is None else with_words(folder, teacher, words)
    with pytest.raises(ValueError, match=message):
        BANTrainer(padded(20, 1), arguments(tmp_path), teacher=folder, processing_class=processor)


# The context

LONG = "input_ids has 6 words, and the teacher, a GPT2LMHeadModel, reads at most 5: .*max_length=5"


def short(seed: int = 2) -> GPT2LMHeadModel:
    return gpt2(seed, n_positions=5, vocab_size=len(WORDS))


def reader(seed: int = 1) -> GPT2LMHeadModel:
    return gpt2(seed, vocab_size=len(WORDS))


@pytest.mark.parametrize("run", ["train", "evaluate"])
def test_a_text_that_is_longer_than_the_teacher_can_read_is_refused(run, tmp_path):
    data = {"train_dataset": texts(), "eval_dataset": texts()}
    trainer = BANTrainer(reader(), arguments(tmp_path), teacher=short(), **data)
    with pytest.raises(ValueError, match=LONG):
        getattr(trainer, run)()
    fitting = {"train_dataset": texts(length=5), "eval_dataset": texts(length=5)}
    trainer = BANTrainer(reader(), arguments(tmp_path), teacher=short(), **fitting)
    getattr(trainer, run)()


def test_so_are_windows_and_a_measurement(tmp_path):
    loader, student = torch.utils.data.DataLoader(texts(), 5), reader()
    with pytest.raises(ValueError, match=LONG):
        evaluate([student], [loader], task_of(student), teacher=short())
    trainer = BANTrainer(
        lstm(1, vocab_size=len(WORDS)),
        arguments(tmp_path, per_device_train_batch_size=4, max_steps=1),
        teacher=short(),
        train_dataset=windows(),
        data_collator=default_data_collator,
    )
    with pytest.raises(ValueError, match="input_ids has 7 words"):
        trainer.train()


def test_the_context_counts_where_it_is_shorter_than_the_students():
    task, ensemble = TASKS["text-generation"], BornAgainEnsemble.from_members([reader(), short()])
    assert pair(task, ensemble, lstm(1, vocab_size=len(WORDS))).context == 5
    assert pair(task, ensemble, reader()).context == 5
    assert pair(task, short(), short(1)).context is None
    assert pair(task, reader(), short()).context is None
