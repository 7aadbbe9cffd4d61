"""Networks by name: image classifiers, ours and timm's, and language models.

| name | network | source |
| --- | --- | --- |
| `lstm_200` | 2 layers of 200, no dropout | Zaremba et al. 2014, small |
| `lstm_650` | 2 layers of 650, dropout 0.5 | Zaremba et al. 2014, medium |
| `lstm_1500` | 2 layers of 1500, dropout 0.65 | Zaremba et al. 2014, large; BAN, Table 6 |
| `char_cnn_lstm_small` | 525 filters, 1 highway layer, 2 LSTM layers of 300 | Kim et al. 2016 |
| `char_cnn_lstm_large` | 1100 filters, 2 highway layers, 2 LSTM layers of 650 | as in Table 6 |

The words of an LSTM are tied to its softmax. For `lstm_1500` the BAN paper says one layer and 52M
parameters: with 10,000 words and tied weights one layer comes to 33.0M and two to 51.0M, so two is
the default, and `num_hidden_layers=1` builds the other. `char_cnn_lstm_large` comes to 19.4M
(the paper: 19M) with 10,000 words and the 48 characters of Penn Treebank.
"""

import dataclasses
import hashlib
import inspect
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from ban_hf.errors import BANError, did_you_mean

from .configuration import NUM_MARKS, CharCNNLSTMConfig, CifarNetConfig, LSTMConfig
from .modeling_cifar import CifarNetForImageClassification
from .modeling_lstm import CharCNNLSTMForCausalLM, LSTMForCausalLM, character_table

# timm takes seconds to import: the functions that need it import it, or `cifar_networks`.

LANGUAGE_PRESETS: dict[str, dict[str, Any]] = {
    "lstm_200": {"hidden_size": 200, "dropout": 0.0, "initializer_range": 0.1},
    "lstm_650": {"hidden_size": 650, "dropout": 0.5, "initializer_range": 0.05},
    "lstm_1500": {"hidden_size": 1500, "dropout": 0.65, "initializer_range": 0.04},
    "char_cnn_lstm_small": {
        "filter_widths": (1, 2, 3, 4, 5, 6),
        "filter_counts": (25, 50, 75, 100, 125, 150),
        "num_highway_layers": 1,
        "hidden_size": 300,
    },
    "char_cnn_lstm_large": {
        "filter_widths": (1, 2, 3, 4, 5, 6, 7),
        "filter_counts": (50, 100, 150, 200, 200, 200, 200),
        "num_highway_layers": 2,
        "hidden_size": 650,
    },
}

LONGEST_WORD = 65  # characters that are read where max_word_length is not given, as in Kim et al.

FROM_DATA = {
    **dict.fromkeys(("label_names", "num_labels", "image_mean", "image_std"), "the data"),
    "image_size": "the data (--image_size)",
    "num_channels": "the data, whose images have 3 channels",
    **dict.fromkeys(("words", "vocab_size"), "the data"),
    "name": "the model's own argument",
}
"""The arguments of a network that a user cannot choose, and where they come from."""
NOT_OF_A_NETWORK = {
    "num_classes": "num_labels or label_names, which are of the data",
    "in_chans": "num_channels, which is of the data",
    "pretrained": "fresh weights; only these are built here",
}
"""timm's names of what `create_classifier` sets itself."""


def check_model_args(model_args: Mapping[str, Any]) -> None:
    """Raise unless a user's arguments of a network leave out what the data decide."""
    for argument, origin in FROM_DATA.items():
        if argument in model_args:
            raise BANError(
                f"model_args: {argument}={model_args[argument]!r}: leave it out; it comes from "
                f"{origin}."
            )


# Image classifiers


def create_classifier(
    name: str,
    *,
    num_labels: int | None = None,
    label_names: Sequence[str] | None = None,
    image_size: int = 32,
    num_channels: int = 3,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    **model_args: Any,
) -> PreTrainedModel:
    """A freshly initialized image classifier; nothing is downloaded.

    The weights are a function of torch's global random state: seed it before.

    Args:
        name: one of `PRESETS`, any other depth and width by the same pattern, such as
            `"cifar_wrn_40_4"`, or any name of `timm.list_models()`, which comes as a
            `TimmWrapperForImageClassification`.
        num_labels: number of classes; may be left out where `label_names` is given.
        label_names: the classes in the order of their labels.
        image_size: height and width of the images.
        num_channels: their channels.
        image_mean: their normalization per channel, recorded in the config; with `image_std`.
        image_std: see `image_mean`.
        **model_args: arguments of the network (`stem_stride=2`, `dropout=0.3`, `drop_path_rate`).

    Raises:
        BANError: an unknown name or argument (with the near matches), a depth that its family does
            not have, labels or normalization that contradict each other, or a network that cannot
            read images of this size.
    """
    import timm

    from .cifar_networks import cifar_arguments, is_cifar_name

    labels = _label_fields(num_labels, label_names)
    images = _image_fields(image_size, num_channels, image_mean, image_std)
    is_ours = is_cifar_name(name)
    if not is_ours and not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models(), n=5)
        raise BANError(
            f"name={name!r} is no model.{hint} It takes a name of timm.list_models(), or "
            "cifar_wrn_DEPTH_WIDTH, cifar_densenet_DEPTH_GROWTH, cifar_preact_resnet_DEPTH, "
            "cifar_densenet_DEPTH_GROWTH_wide_UNITS_RATIO, "
            "cifar_densenet_DEPTH_GROWTH_preact_UNITS_RATIO"
        )
    for argument, instead in NOT_OF_A_NETWORK.items():
        if argument in model_args:
            raise BANError(f"model_args: {argument} is set by {instead}: leave it out.")
    if model_args:
        _check_arguments(name, model_args, cifar_arguments(name) or _timm_arguments(name))
    if not is_ours:
        return _timm_classifier(name, model_args, images, labels)
    with _ban_errors():
        config = CifarNetConfig(architecture=name, model_args=model_args, **images, **labels)
        return CifarNetForImageClassification(config)


def image_processor(
    image_size: int, image_mean: Sequence[float], image_std: Sequence[float]
) -> BaseImageProcessor:
    """The image processor to save beside a model, so that `pipeline` works on the folder.

    A pixel in 0..255 becomes (pixel / 255 - mean) / std; an image of another size is resized to
    `image_size` x `image_size` first.
    """
    from transformers import ViTImageProcessor

    return ViTImageProcessor(
        size={"height": image_size, "width": image_size},
        image_mean=list(image_mean),
        image_std=list(image_std),
    )


def share_ends(
    student: CifarNetForImageClassification, teacher: CifarNetForImageClassification
) -> None:
    """Copy the teacher's first convolution and last linear layer into the student and freeze them.

    As in Table 5 of Born-Again Networks, for residual students of a DenseNet. The student's copies
    are its own and learn no more; its BatchNorm layers, and the teacher, stay as they are. A saved
    student holds their weights, not that they are frozen: call this again to train it further.
    """
    if student is teacher:
        raise BANError("student and teacher are the same model: build a new student")
    names = ("first convolution", "last linear layer")
    pairs = list(zip(names, student.network.ends, teacher.network.ends, strict=True))
    for name, mine, other in pairs:
        if _shapes(mine) != _shapes(other):
            raise BANError(
                f"the {name} is {_shapes(mine)} in the student ({student.config.architecture}) "
                f"and {_shapes(other)} in the teacher ({teacher.config.architecture}): build both "
                "with the same num_labels, num_channels and compression, the student as one of "
                "cifar_densenet_DEPTH_GROWTH_wide_UNITS_RATIO or ..._preact_UNITS_RATIO with the "
                "DEPTH and GROWTH of its teacher"
            )
    for _, mine, other in pairs:
        mine.load_state_dict(other.state_dict())
        mine.requires_grad_(False)


def _shapes(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in layer.state_dict().items()}


def _timm_classifier(
    name: str, model_args: dict[str, Any], images: dict[str, Any], labels: dict[str, Any]
) -> PreTrainedModel:
    import timm
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    size, channels = images["image_size"], images["num_channels"]
    if model_args.get("img_size", size) not in (size, [size, size], (size, size)):
        raise BANError(
            f"model_args: img_size={model_args['img_size']}, but the images are {size}x{size}: "
            "leave img_size out, or set the images' size with image_size."
        )
    pretrained_cfg = timm.get_pretrained_cfg(name)
    if pretrained_cfg is not None and pretrained_cfg.fixed_input_size:
        model_args = {"img_size": size, **model_args}
    if channels != 3:
        model_args = {"in_chans": channels, **model_args}
    config = TimmWrapperConfig(architecture=name, model_args=model_args, **labels)
    if images["image_mean"] is not None:
        # a folder of a timm model has its image processor read from here
        config.pretrained_cfg = {
            "input_size": [channels, size, size],
            "crop_pct": 1.0,
            "mean": images["image_mean"],
            "std": images["image_std"],
        }
    model = TimmWrapperForImageClassification(config)
    # the wrapper has drawn all weights again from N(0, 0.02), meant for heads on pretrained bodies
    network = timm.create_model(name, num_classes=config.num_labels, **model_args)
    model.timm_model = network
    if any(p.is_meta for p in network.parameters()):
        return model  # only its size is wanted
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            network.eval()(torch.zeros(1, channels, size, size))
    except (AssertionError, RuntimeError) as error:  # what timm and torch raise for a shape
        raise BANError(
            f"{name} cannot read images of {size}x{size} ({error}): set another image_size, or "
            "take another model_name."
        ) from error
    network.train()
    return model


@cache
def _timm_arguments(name: str) -> tuple[str, ...]:
    """The keyword arguments of the class of a network of timm."""
    import timm

    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # no memory, no random numbers
        network = type(timm.create_model(name))
    found: dict[str, None] = {}
    for base in network.__mro__[: network.__mro__.index(nn.Module)]:
        parameters = inspect.signature(base).parameters.values()
        found |= {p.name: None for p in parameters if p.kind is not p.VAR_KEYWORD}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break  # it hands nothing on to the next class
    return tuple(argument for argument in found if argument not in NOT_OF_A_NETWORK)


def _check_arguments(name: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = sorted(given.keys() - set(known))
    if unknown:
        hints = "".join(did_you_mean(argument, known) for argument in unknown)
        raise BANError(
            f"model_args: {', '.join(unknown)}: not taken by {name}.{hints} It takes "
            f"{', '.join(sorted(known))}."
        )


@contextmanager
def _ban_errors() -> Iterator[None]:
    """What the modeling files refuse is a user's to mend; they cannot import `BANError`."""
    try:
        yield
    except ValueError as error:
        raise BANError(str(error)) from error


def _image_fields(
    size: int, channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> dict[str, Any]:
    if (mean is None) != (std is None):
        raise BANError("image_mean and image_std go together: give both or neither")
    for name, values in (("image_mean", mean), ("image_std", std)):
        if values is not None and len(values) != channels:
            raise BANError(f"{name} has {len(values)} values for num_channels={channels}")
    return {
        "image_size": size,
        "num_channels": channels,
        "image_mean": None if mean is None else list(mean),
        "image_std": None if std is None else list(std),
    }


def _label_fields(num_labels: int | None, label_names: Sequence[str] | None) -> dict[str, Any]:
    if label_names is None:
        if num_labels is None:
            raise BANError("give num_labels or label_names: the number of classes is unknown")
        return {"num_labels": num_labels}
    if num_labels is not None and num_labels != len(label_names):
        raise BANError(f"num_labels is {num_labels}, but label_names has {len(label_names)}")
    if len(set(label_names)) < len(label_names):
        raise BANError("label_names holds a name twice: each class needs its own")
    return {
        "id2label": dict(enumerate(label_names)),
        "label2id": {label: i for i, label in enumerate(label_names)},
    }


# Language models


def create_language_model(
    name: str,
    *,
    words: Sequence[str] | None = None,
    vocab_size: int | None = None,
    **config: Any,
) -> PreTrainedModel:
    """A freshly initialized language model; nothing is downloaded.

    The weights are a function of torch's global random state: seed it before.

    Args:
        name: one of `LANGUAGE_PRESETS`, see the table at the top of this module.
        words: the vocabulary in the order of the ids. Sets the digest that tells models of the
            same vocabulary, the ids of `<eos>`, which begins and ends a text, and of `<pad>`, where
            they are among the words, and the character table.
        vocab_size: their number; enough for an LSTM where `words` is left out.
        **config: fields of the config, in place of the preset's (`dropout=0.2`,
            `num_hidden_layers=1`, `tie_word_embeddings=False`).

    Raises:
        BANError: an unknown name or field (with the near matches), or words that are missing,
            not distinct, or at odds with another argument.
    """
    if name not in LANGUAGE_PRESETS:
        raise BANError(
            f"name={name!r} is no language model.{did_you_mean(name, LANGUAGE_PRESETS)} "
            f"There are {', '.join(LANGUAGE_PRESETS)}."
        )
    is_spelled = name.startswith("char_cnn")
    config_class = CharCNNLSTMConfig if is_spelled else LSTMConfig
    common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    known = {field.name for field in dataclasses.fields(config_class)} - common - {"vocab_size"}
    _check_arguments(name, config, sorted(known | config_class.attribute_map.keys()))
    fields = {**LANGUAGE_PRESETS[name], "vocab_size": vocab_size}
    if words is not None:
        _check_words(words, vocab_size, config)
        fields |= _fields_of_words(words)
    elif is_spelled or vocab_size is None:
        raise BANError(f"give words{'' if is_spelled else ' or vocab_size'}: {name} needs them")
    fields |= config
    with _ban_errors():
        if is_spelled and words is not None:
            return _spelled_model(words, fields)
        return LSTMForCausalLM(LSTMConfig(**fields))


def vocabulary_digest(words: Sequence[str]) -> str:
    """sha256 of the words in the order of their ids, as configs have it.

    The `words_sha256` of :func:`ban_hf.data.load_text` is of the same words joined by line ends.
    Both are in published files, so neither can change.
    """
    return hashlib.sha256(json.dumps(list(words)).encode()).hexdigest()


def _spelled_model(words: Sequence[str], fields: dict[str, Any]) -> CharCNNLSTMForCausalLM:
    CharCNNLSTMConfig(**{"max_word_length": sys.maxsize} | fields)  # refuses other bad fields
    longest = min(max(map(len, words)), LONGEST_WORD)
    fields.setdefault("max_word_length", max(longest, max(fields["filter_widths"]) - 2))
    table, alphabet = character_table(words, fields["max_word_length"])
    config = CharCNNLSTMConfig(**fields, num_characters=NUM_MARKS + len(alphabet))
    model = CharCNNLSTMForCausalLM(config)
    model.characters.copy_(table)
    return model


def _fields_of_words(words: Sequence[str]) -> dict[str, Any]:
    """The fields of a config that follow from a vocabulary."""
    fields: dict[str, Any] = {"vocab_size": len(words)}
    fields["vocabulary_sha256"] = vocabulary_digest(words)
    if "<eos>" in words:
        special = ("bos_token_id", "eos_token_id", "pad_token_id")
        fields |= dict.fromkeys(special, words.index("<eos>"))
    if "<pad>" in words:
        fields["pad_token_id"] = words.index("<pad>")
    return fields


def _check_words(words: Sequence[str], vocab_size: int | None, config: dict[str, Any]) -> None:
    if isinstance(words, str) or not words:
        raise BANError(f"words={words!r} must be a list of words, in the order of their ids")
    if len(set(words)) < len(words):
        raise BANError("words holds a word twice: each id needs its own")
    if vocab_size not in (None, len(words)):
        raise BANError(f"vocab_size is {vocab_size}, but words has {len(words)}")
    implied = {"num_characters", "vocabulary_sha256"} & config.keys()
    if implied:
        raise BANError(f"{', '.join(sorted(implied))} follow from words: leave them out")
