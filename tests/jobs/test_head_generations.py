"""Every head in a sequence: killed and resumed, measured, recorded, averaged, and put to use."""

import numpy as np
import pytest
import torch
from family import KillAt, Killed
from heads import FIRST, batch_of, collate, rows_of
from PIL import Image
from tiny import arguments, distance
from tiny_heads import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    SegformerImageProcessor,
    ViTImageProcessor,
    Wav2Vec2FeatureExtractor,
    pipeline,
)

from ban_hf import train_generations, verify_lineage
from ban_hf.lineage.catalog import CATALOG, LEADING, MEASURES
from ban_hf.lineage.record import Record
from ban_hf.reports.model_card import render_card
from ban_hf.tasks.auto import load_model, task_of


def tokenizer() -> PreTrainedTokenizerFast:
    """As many words as a tiny model knows."""
    words = {f"w{i}": i for i in range(128)} | {"<pad>": 0, "<mask>": 1, "<unk>": 2}
    words = {word: i for word, i in words.items() if word not in ("w0", "w1", "w2")}
    found = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(pad_token="<pad>", mask_token="<mask>", unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=found, **special)


IMAGE = Image.new("RGB", (32, 32))
SOUND = np.zeros(3200, np.float32)


def images() -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": 32, "width": 32})


#: What a pipeline of some tasks reads with, and an input.
PIPELINES = {
    "image-classification": (images, IMAGE),
    "image-segmentation": (
        lambda: SegformerImageProcessor(size={"height": 32, "width": 32}),
        IMAGE,
    ),
    "text-classification": (tokenizer, "w5 w6"),
    "token-classification": (tokenizer, "w5 w6"),
    "fill-mask": (tokenizer, "w5 <mask> w6"),
    "text-generation": (tokenizer, "w5 w6"),
    "audio-classification": (Wav2Vec2FeatureExtractor, SOUND),
}


def run(case, folder, callbacks=(), generations=2):
    auto_class, name, kind = case
    rows = rows_of(batch_of(case))

    def fresh(generation: int):
        model = tiny_model(auto_class, name, torch.initial_seed() % 2**31)
        model.config.problem_type = kind
        return model

    task = task_of(fresh(0))
    reader = PIPELINES.get(task.name, (None, None))[0]
    args = arguments(
        folder,
        per_device_train_batch_size=4,
        save_strategy="steps",
        save_steps=1,
        max_steps=2,
        learning_rate=0.1,
        remove_unused_columns=False,
    )
    return train_generations(
        fresh,
        args,
        generations=generations,
        ensemble=generations > 1,
        train_dataset=rows,
        test_dataset=rows,
        data_collator=collate,
        callbacks=list(callbacks),
        processing_class=reader and reader(),
    )


@pytest.mark.parametrize("case", FIRST, ids=lambda case: "-".join(map(str, case[1:])))
def test_two_generations_and_their_ensemble_killed_once(case, tmp_path):
    run(case, tmp_path / "whole", generations=1)
    with pytest.raises(Killed):
        run(case, tmp_path / "killed", [KillAt(1, 1)])
    run(case, tmp_path / "killed")
    names = ["generation-0", "generation-1", "generation-2"]
    loaded = [load_model(tmp_path / "killed" / name) for name in names]
    for name, model in zip(names[:2], loaded[:2], strict=True):
        assert distance(model, load_model(tmp_path / "whole" / name)) == 0

    task, folder = task_of(loaded[0]), tmp_path / "killed" / "ensemble"
    ensemble, inputs = load_model(folder), batch_of(case)
    with torch.no_grad():
        (output, axis), *_ = task.outputs
        z = [getattr(model(**inputs), output) for model in (ensemble, *loaded[1:])]
        means = ensemble(**inputs)
    squash = {
        "softmax": lambda x: x.softmax(axis),
        "sigmoid": torch.sigmoid,
        "identity": lambda x: x,
    }
    activation = task.activation(loaded[0], {})
    of_ensemble, first, second = map(squash[activation], z)
    torch.testing.assert_close(of_ensemble, (first + second) / 2, rtol=1e-4, atol=1e-5)
    assert means.loss.isfinite()

    records = [Record.read(tmp_path / "killed" / name) for name in (*names, "ensemble")]
    leading = LEADING.get(activation, task.headline.name)
    if task.name == "token-classification":  # classes without a scheme of entities
        leading = "error"
    for record in records:
        verify_lineage(tmp_path / "killed" / "ensemble")
        assert record.metric(leading, "test") is not None
    student = records[2].to_dict()
    assert student["objective"].get("activation", "softmax") == activation
    assert records[2].metric("teacher_kl", "test") > 0
    card = str(render_card(student, pipeline_tag=task.name))
    assert CATALOG[task.name].noun in card
    assert MEASURES[leading].leading.name in card
    if task.name in PIPELINES and "ForCausalLM" not in case[1]:
        use = pipeline(task.facts.pipeline_tag, model=str(tmp_path / "killed" / "generation-2"))
        assert use(PIPELINES[task.name][1])
