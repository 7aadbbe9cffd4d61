"""Every class of the Auto classes whose heads are taught, with tiny sizes, and a batch for it.

`tiny_model` shrinks a config by the names of its fields; `tiny_heads.yaml` has what the names do
not settle. `batch` reads in the signature of a model's `forward` which inputs it takes.
"""

import copy
import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

#: The Auto classes by task, as the Hub calls it; a class of several counts for the first.
AUTO_CLASSES = {
    "image-classification": "AutoModelForImageClassification",
    "audio-classification": "AutoModelForAudioClassification",
    "video-classification": "AutoModelForVideoClassification",
    "text-classification": "AutoModelForSequenceClassification",
    "multiple-choice": "AutoModelForMultipleChoice",
    "next-sentence-prediction": "AutoModelForNextSentencePrediction",
    "token-classification": "AutoModelForTokenClassification",
    "audio-frame-classification": "AutoModelForAudioFrameClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "image-segmentation": "AutoModelForSemanticSegmentation",
    "text2text-generation": "AutoModelForSeq2SeqLM",
    "fill-mask": "AutoModelForMaskedLM",
    "text-generation": "AutoModelForCausalLM",
    "automatic-speech-recognition": "AutoModelForSpeechSeq2Seq",
    "image-text-to-text": "AutoModelForImageTextToText",
    "any-to-any": "AutoModelForMultimodalLM",
    "ctc": "AutoModelForCTC",
}
SETTINGS: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
#: Why there is no tiny model or no batch of a class.
NOT_BUILDABLE: dict[str, str] = SETTINGS["not_buildable"]
SIZES: dict[str, dict[str, Any]] = SETTINGS["sizes"]
NOTES: dict[str, str] = SETTINGS["notes"]
IMAGES = {name: form for form, names in SETTINGS["images"].items() for name in names.split()}
LABEL_NAMES = {"labels", "start_positions", "end_positions"}
LIMIT = 5_000_000  # parameters

WIDTH, HEADS, LAYERS, WORDS, LENGTH, FRAME, PATCH, LABELS = 64, 4, 2, 128, 16, 32, 8, 3
FRAMES = 64  # of sound
#: The words of a batch are in this range; special tokens are not.
FIRST_WORD, FIRST_SPECIAL = 10, 90
TOKENS = {"pad": 0, "bos": 1, "eos": 2, "decoder_start": 1, "sep": 3, "unk": 4, "cls": 5}

KEY_VALUE_HEADS = r"(.*_)?(num_)?(key_value_|kv_)heads|kv_n_heads"
DEPTHS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "depth", "encoder_layers")
#: The largest value of a number by its field's name; the first pattern counts, None keeps all.
NUMBERS: tuple[tuple[str, float | None], ...] = (
    (r".*(dropout|drop_rate|layerdrop|layer_drop|pdrop|jitter|_noise|drop_path_rate).*", 0.0),
    (r"mask_(time|feature)_prob|drop_connect_rate", 0.0),
    (r"(.*_)?vocab_size(_per_layer_input)?", WORDS),
    (r"type_vocab_size|num_labels|.*_(multiplier|coef)", None),
    (KEY_VALUE_HEADS + r"|linear_num_(key|value)_heads", 2),
    (r".*(attention_heads|num_heads|n_heads?|_heads)", HEADS),
    (r"(.*_)?head_dim|d_kv|d_head|attention_head_size|dim_head|rotary_dim", 16),
    (r"num_kv_shared_layers|num_dense_layers", None),
    (r"(.*_)?(num_hidden_layers|n_layers?|layers|depth|num_blocks)", LAYERS),
    (r"(num|n)_(local_|routed_)?experts|moe_num_experts", 4),
    (r"num_experts_per_tok|moe_top_?k|moe_k|top_k_experts", 2),
    (r"n_groups?|topk_group", 1),
    (r"(q|kv|o)_lora_rank", 32),
    (r"max_source_positions", 32),
    (r"(.*_)?(max_position_embeddings|max_target_positions)|n_positions|max_seq_len|n_ctx", 256),
    (r"image_size|resolution|crop_size|input_size", FRAME),
    (r"patch_size", PATCH),
    (r"num_position_embeddings|seq_len|index_topk|num_mel_bins|input_feat_per_channel", 16),
    (r"feature_size|mel_dim|num_conv_pos_embeddings", 16),
    (r"num_conv_pos_embedding_groups", 2),
    (r"num_(qa|object|attr)_labels", 8),
    (r"num_query_tokens|(.*_)?num_latents|n_inner|d_model|n_embd|d_ff|dff|dim_ff|lru_width", WIDTH),
    (r"num_embeddings|ngram_vocab_size_base", WIDTH),
    (r".*(hidden|_channels|_width|_size|_dims?|_units|_rank|_latents)(_.*)?|dim", WIDTH),
)
#: The largest value in a list of numbers.
LISTS = (
    (r"(num_)?depths|num_block_repeats|stage_num_blocks|depth", 1),
    (r".*heads", 2),
    (r".*(hidden_sizes|embed_dims?|conv_dim|tdnn_dim|channels?|key_dim)", 32),
)
#: What a config leaves open that its model needs.
OPEN = {"head_dim": 16, "num_key_value_heads": HEADS, "num_experts_per_tok": 2}


# Models


def classes() -> dict[str, tuple[str, str]]:
    """Every class: its task, and the first model type that it is known for."""
    found: dict[str, tuple[str, str]] = {}
    for task, auto_class in AUTO_CLASSES.items():
        mapping = getattr(transformers, auto_class)._model_mapping._model_mapping
        for model_type, heads in mapping.items():
            for head in heads if isinstance(heads, tuple) else (heads,):
                found.setdefault(head, (task, model_type))
    return found


def tiny_model(auto_class: str, head: str, seed: int = 0) -> PreTrainedModel:
    """A tiny model of a class of an Auto class, in evaluation mode.

    Its matrices are drawn so large that the logits of different places and classes differ: with
    those of an initialization every label would cost about the same.
    """
    cls = getattr(transformers, head)
    config = tiny_config(auto_class, cls)
    with torch.device("meta"):
        size = cls(copy.deepcopy(config)).num_parameters()
    assert size <= LIMIT, (
        f"{head} has {size:,} parameters: give it smaller sizes in tiny_heads.yaml"
    )
    torch.manual_seed(seed)
    model: PreTrainedModel = cls(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.is_floating_point() and parameter.numel():
                deviation = parameter[0].numel() ** -0.5
                parameter.normal_(0.0, deviation, generator=generator)
    return model


def tiny_config(auto_class: str, head: type[PreTrainedModel]) -> PretrainedConfig:
    """A tiny config of a class."""
    sizes = shrink(head.config_class, {}, {})
    if auto_class.endswith(("Classification", "Segmentation")):
        sizes["num_labels"] = LABELS
    names = {field.name for field in dataclasses.fields(head.config_class)}
    if auto_class == "AutoModelForCausalLM" and "is_decoder" in names:
        sizes["is_decoder"] = True
    config = head.config_class(**sizes)
    if config.is_encoder_decoder:  # the class's config has them from its generation settings
        known = config.to_dict()
        for name in ("decoder_start_token_id", "pad_token_id"):
            if known.get(name) is None:
                setattr(config, name, 0)
    return config


def shrink(
    config: type[PretrainedConfig], init: dict[str, Any], tokens: dict[str, int]
) -> dict[str, Any]:
    """The arguments of a tiny config, by the names of its fields.

    Args:
        config: the class.
        init: arguments that it is made with by default.
        tokens: the special tokens of the whole model, by name; those met here are added.
    """
    settings = dict(SIZES.get(config.model_type, {}))
    full = config(**merged(init, settings.pop("full", {})))
    values, sizes = full.__dict__, {}
    for field in dataclasses.fields(config):
        name, value = field.name, values.get(field.name)
        if name in PretrainedConfig.__dataclass_fields__ or name in config.sub_configs:
            continue
        is_open = field.default is None and name not in init
        small = small_value(name, value, values, is_open, tokens)
        if small != value:
            sizes[name] = small
    for name, base in config.sub_configs.items():
        sub = values.get(name)
        if sub is not None:
            spec = (config.sub_configs_defaults or {}).get(name)
            given = dict(spec.init_kwargs or {}) if spec else {}
            sizes[name] = shrink(type(sub), given | (init.get(name) or {}), tokens)
            if not issubclass(base, PretrainedConfig):
                sizes[name]["model_type"] = type(sub).model_type
    return merged(merged(init, sizes), settings)


def small_value(
    name: str, value: Any, values: dict[str, Any], is_open: bool, tokens: dict[str, int]
) -> Any:
    """A tiny value of a field among `values`; `is_open` says that the config derives it."""
    depth = next((values[n] for n in DEPTHS if isinstance(values.get(n), int)), 0)
    heads = next((values[n] for n in ("num_attention_heads", "num_heads") if n in values), 0)
    if re.fullmatch(r".*token_(id|index)", name):
        return small_token(name, value, tokens)
    if name == "vocab_size":
        return WORDS
    if value is None:
        return OPEN.get(name)
    if isinstance(value, list | tuple) and depth > LAYERS and len(value) == depth:
        return [value[0], next((kind for kind in value if kind != value[0]), value[0])]
    if isinstance(value, dict) and "mrope_section" in value:
        return {**value, "mrope_section": SETTINGS["mrope"]["mrope_section"]}
    if is_open and not isinstance(value, list | tuple):
        return value
    if re.fullmatch(KEY_VALUE_HEADS, name) and value == heads:
        return HEADS
    return small_number(name, value)


def small_number(name: str, value: Any) -> Any:
    """A tiny value of a number or a list of numbers; anything else as it is."""
    if isinstance(value, list | tuple):
        numbers = all(type(number) is int for number in value)
        for pattern, limit in LISTS if numbers else ():
            if re.fullmatch(pattern, name):
                return [min(limit, number) for number in value]
        return [FRAME, FRAME] if name == "image_size" else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    for pattern, limit in NUMBERS:
        if re.fullmatch(pattern, name):
            if limit == 0.0:
                return 0.0
            return value if limit is None or isinstance(value, float) else min(limit, value)
    return value


def small_token(name: str, value: Any, tokens: dict[str, int]) -> Any:
    """The number of a special token: a common one is small, others are beyond the words."""
    value = value[0] if isinstance(value, list | tuple) else value
    common = TOKENS.get(name.removesuffix("_token_id"))
    if common is None:
        if value is None and not name.startswith(("image", "video")):
            return None
        return tokens.setdefault(name.replace("_index", "_id"), FIRST_SPECIAL + len(tokens))
    if value is None:
        return common if name == "pad_token_id" else None
    return common if value >= FIRST_WORD else value


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two nested dicts as one; the second wins."""
    both = dict(first)
    for name, value in second.items():
        if isinstance(value, dict) and isinstance(both.get(name), dict):
            value = merged(both[name], value)
        both[name] = value
    return both


# Batches


class Draw:
    """What a batch is drawn from."""

    def __init__(self, rows: int, seed: int):
        self.rows, self.generator = rows, torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.rows, *shape, generator=self.generator)

    def classes(self, *shape: int, below: int = LABELS) -> Tensor:
        return torch.randint(below, (self.rows, *shape), generator=self.generator)

    def words(self, *shape: int) -> Tensor:
        return FIRST_WORD + self.classes(*shape, below=FIRST_SPECIAL - FIRST_WORD)


def batch(
    model: PreTrainedModel, auto_class: str, rows: int = 3, seed: int = 0, labels: bool = True
) -> dict[str, Any]:
    """A batch for a model of an Auto class, with labels as its head reads them."""
    draw = Draw(rows, seed)
    names = set(inspect.signature(model.forward).parameters)
    inputs = main_input(model, auto_class, names, draw)
    if auto_class == "AutoModelForMultipleChoice":
        inputs = {k: torch.stack([v, v.flip(1), v.roll(1, 1)], 1) for k, v in inputs.items()}
    if "attention_mask" in names and "input_ids" in inputs:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if model.config.model_type in INPUTS:
        INPUTS[model.config.model_type](model, inputs, draw)
    if "Generation" in type(model).__name__ and model.config.model_type in IMAGES:
        add_images(model, inputs, names, draw)
    known = set(inputs) & LABEL_NAMES
    if labels and not known:
        inputs |= labels_of(model, auto_class, inputs, draw)
    return inputs if labels else {k: v for k, v in inputs.items() if k not in known}


def main_input(
    model: PreTrainedModel, auto_class: str, names: set[str], draw: Draw
) -> dict[str, Any]:
    """Words, pixels or sound, whichever a model reads."""
    size = image_size(model.config)
    if auto_class == "AutoModelForVideoClassification":
        frames = model.config.to_dict().get("num_frames", 2)
        name = next(name for name in sorted(names) if name.startswith("pixel_values"))
        return {name: draw.normal(frames, 3, *size)}
    if "pixel_values" in names and auto_class.endswith(("ImageClassification", "Segmentation")):
        return {"pixel_values": draw.normal(3, *size)}
    if "input_ids" in names:
        words = draw.words(LENGTH)
        last = model.config.get_text_config().to_dict().get("eos_token_id")
        if isinstance(last, int):
            words[:, -1] = last
        return {"input_ids": words}
    if "input_values" in names:
        return {"input_values": draw.normal(3200)}
    if "input_features" in names:
        return {"input_features": draw.normal(FRAMES, 16)}
    if "pixel_values" in names:
        return {"pixel_values": draw.normal(3, *size)}
    return {"inputs": draw.normal(3, *size)} if "inputs" in names else {}


def image_size(config: PretrainedConfig) -> tuple[int, int]:
    """Height and width of the images that a model reads."""
    known = config.to_dict()
    for part in (known, known.get("vision_config") or {}, known.get("encoder") or {}):
        size = part.get("image_size") or part.get("crop_size")
        if size:
            return (size, size) if isinstance(size, int) else (size[0], size[1])
    return FRAME, FRAME


def add_images(model: PreTrainedModel, inputs: dict[str, Any], names: set[str], draw: Draw) -> None:
    """An image a row, and among its words as many image tokens as the image has features."""
    vision, (height, width) = model.config.vision_config.to_dict(), image_size(model.config)
    patch, depth = vision.get("patch_size"), vision.get("temporal_patch_size", 1)
    sizes = torch.tensor([[height, width]] * draw.rows)
    grid = torch.tensor([[1, 4, 4]] * draw.rows)
    images = {
        "square": lambda: {"pixel_values": draw.normal(3, height, width)},
        "sized": lambda: {"pixel_values": draw.normal(3, height, width), "image_sizes": sizes},
        "tiles": lambda: {"pixel_values": draw.normal(1, 3, height, width)},
        "grid": lambda: {
            "pixel_values": draw.normal(16, 3 * depth * patch**2).flatten(0, 1),
            "image_grid_thw": grid,
        },
        "patches": lambda: {
            "pixel_values": draw.normal(16, 3, patch, patch).flatten(0, 1),
            "image_grid_thw": grid,
        },
    }[IMAGES[model.config.model_type]]()
    with torch.no_grad():
        features = model.get_image_features(**images).pooler_output
    count = sum(len(part.reshape(-1, part.shape[-1])) for part in features) // draw.rows
    known = model.config.to_dict()
    token = known.get("image_token_id") or known["image_token_index"]
    words = inputs["input_ids"]
    places = words.new_full((draw.rows, count), token)
    inputs["input_ids"] = torch.cat([words[:, :1], places, words[:, 1:]], 1)
    if "attention_mask" in inputs:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in names:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == token).long()
    inputs.update(images)


def labels_of(
    model: PreTrainedModel, auto_class: str, inputs: dict[str, Any], draw: Draw
) -> dict[str, Any]:
    """Labels as a head reads them, with some that do not count."""
    if auto_class == "AutoModelForQuestionAnswering":
        starts = draw.classes(below=LENGTH // 2)
        ends = starts + draw.classes(below=LENGTH // 2)
        ends[-1] = 10 * LENGTH  # outside of the text
        return {"start_positions": starts, "end_positions": ends}
    if auto_class == "AutoModelForAudioFrameClassification":
        with torch.no_grad():
            frames, count = model(**inputs).logits.shape[1:]
        return {"labels": torch.nn.functional.one_hot(draw.classes(frames), count).float()}
    if auto_class == "AutoModelForSemanticSegmentation":
        height, width = image_size(model.config)
        more = 0 if model.config.model_type == "upernet" else 6
        labels = draw.classes(height + more, width - more)
        labels[:, :3, 5:9] = 255
    elif auto_class == "AutoModelForTokenClassification":
        labels = draw.classes(LENGTH)
        labels[0, :3] = labels[1, -2:] = -100
    elif auto_class == "AutoModelForNextSentencePrediction":
        labels = draw.classes(below=2)
    elif auto_class.endswith(("Classification", "MultipleChoice")):
        labels = draw.classes()
    elif auto_class == "AutoModelForCTC" or model.config.is_encoder_decoder:
        labels = draw.words(7 if model.config.is_encoder_decoder else 3)
        labels[0, 2:] = -100
    else:
        labels = inputs["input_ids"].clone()
        labels[0, :4] = labels[1, -3:] = -100
        if auto_class == "AutoModelForMaskedLM":
            labels[:, ::3] = -100
        labels[labels >= FIRST_SPECIAL] = -100
    return {"labels": labels}


# What some models read besides


def _boxes(model: PreTrainedModel, inputs: dict[str, Any], draw: Draw) -> None:
    corners = draw.classes(LENGTH, 4, below=50)
    corners[..., 2:] += corners[..., :2] + 1
    inputs["bbox"] = corners


def _relative_boxes(model: PreTrainedModel, inputs: dict[str, Any], draw: Draw) -> None:
    inputs["bbox"] = draw.normal(LENGTH, 4).sigmoid()


def _mel_bins_first(model: PreTrainedModel, inputs: dict[str, Any], draw: Draw) -> None:
    if "input_features" in inputs:
        frames = 2 * model.config.max_source_positions
        inputs["input_features"] = draw.normal(model.config.num_mel_bins, frames)


def _spectrogram(model: PreTrainedModel, inputs: dict[str, Any], draw: Draw) -> None:
    inputs["input_values"] = draw.normal(FRAMES, 16)


def _one_channel(model: PreTrainedModel, inputs: dict[str, Any], draw: Draw) -> None:
    if "input_ids" not in inputs:
        inputs["input_values"] = draw.normal(1, 3200)
        inputs["padding_mask"] = torch.ones(draw.rows, 3200, dtype=torch.long)


def _features_and_mask(model: PreTrainedModel, inputs: dict[str, Any], draw: Draw) -> None:
    encoder = model.config.encoder_config
    stacked = 4 if encoder.model_type == "granite_speech5_encoder" else 1
    inputs["input_features"] = draw.normal(2 * FRAMES, encoder.num_mel_bins * stacked)
    inputs["attention_mask"] = torch.ones(draw.rows, 2 * FRAMES, dtype=torch.long)


def _decoder_words(model: PreTrainedModel, inputs: dict[str, Any], draw: Draw) -> None:
    inputs["decoder_input_ids"] = draw.words(7)


def _separators(model: PreTrainedModel, inputs: dict[str, Any], draw: Draw) -> None:
    """A question and a text."""
    inputs["input_ids"][..., [0, 4, 5, -1]] = torch.tensor(
        [FIRST_WORD, *[model.config.sep_token_id] * 3]
    )


def _codebooks(model: PreTrainedModel, inputs: dict[str, Any], draw: Draw) -> None:
    count = model.config.num_codebooks
    inputs.clear()
    inputs["input_ids"] = draw.words(count, LENGTH).flatten(0, 1)
    inputs["labels"] = draw.words(LENGTH, count)


def _objects(model: PreTrainedModel, inputs: dict[str, Any], draw: Draw) -> None:
    inputs["visual_feats"] = draw.normal(5, model.config.visual_feat_dim)
    inputs["visual_pos"] = draw.normal(5, 4)


def _patches_of_any_shape(model: PreTrainedModel, inputs: dict[str, Any], draw: Draw) -> None:
    inputs["pixel_values"] = draw.normal(16, 3 * model.config.vision_config.patch_size**2)
    inputs["pixel_attention_mask"] = torch.ones(draw.rows, 16, dtype=torch.long)
    inputs["spatial_shapes"] = torch.tensor([[4, 4]] * draw.rows)


def _placed_patches(model: PreTrainedModel, inputs: dict[str, Any], draw: Draw) -> None:
    patches = draw.normal(16, model.config.vision_config.patch_embed_hidden_size)
    places = draw.classes(16, 2, below=4).float()
    inputs["flattened_patches"] = torch.cat([places, patches], 2)


def _pixels(model: PreTrainedModel, inputs: dict[str, Any], draw: Draw) -> None:
    inputs["pixel_values"] = draw.normal(3, *image_size(model.config))


def _pixels_and_decoder_words(model: PreTrainedModel, inputs: dict[str, Any], draw: Draw) -> None:
    inputs.clear()
    _pixels(model, inputs, draw)
    _decoder_words(model, inputs, draw)


def _pixels_in_places(model: PreTrainedModel, inputs: dict[str, Any], draw: Draw) -> None:
    _pixels(model, inputs, draw)
    places = torch.zeros_like(inputs["input_ids"])
    places[:, 1 : 1 + model.config.latent_query_num] = 1
    inputs["image_embeds_position_mask"] = places


def _pixels_for_words(model: PreTrainedModel, inputs: dict[str, Any], draw: Draw) -> None:
    inputs["pixel_values"] = draw.normal(1, 3, *image_size(model.config))
    inputs["image_attention_mask"] = torch.ones(draw.rows, LENGTH, 1, dtype=torch.long)


def _pixels_and_question(model: PreTrainedModel, inputs: dict[str, Any], draw: Draw) -> None:
    _pixels(model, inputs, draw)
    inputs["qformer_input_ids"] = draw.words(5)


def _frames_and_question(model: PreTrainedModel, inputs: dict[str, Any], draw: Draw) -> None:
    inputs["pixel_values"] = draw.normal(2, 3, *image_size(model.config))
    inputs["qformer_input_ids"] = draw.words(5)


#: By model type.
INPUTS: dict[str, Callable[[PreTrainedModel, dict[str, Any], Draw], None]] = {
    "audio-spectrogram-transformer": _spectrogram,
    "blip": _pixels,
    "blip-2": _pixels,
    "bros": _relative_boxes,
    "fsmt": _decoder_words,
    "git": _pixels,
    "granite_speech5_ctc": _features_and_mask,
    "idefics": _pixels_for_words,
    "instructblip": _pixels_and_question,
    "instructblipvideo": _frames_and_question,
    "kosmos-2": _pixels_in_places,
    "lasr_ctc": _features_and_mask,
    "layoutlm": _boxes,
    "layoutlmv3": _boxes,
    "lilt": _boxes,
    "longformer": _separators,
    "lxmert": _objects,
    "musicgen_decoder": _codebooks,
    "musicgen_melody_decoder": _codebooks,
    "omniasr_ctc": _one_channel,
    "parakeet_ctc": _features_and_mask,
    "pix2struct": _placed_patches,
    "pp_formulanet": _pixels_and_decoder_words,
    "siglip2": _patches_of_any_shape,
    "udop": _relative_boxes,
    "whisper": _mel_bins_first,
}
