"""A word-level tokenizer that reads a text exactly as the corpus was read."""

from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.normalizers import Replace, Sequence
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

EOS = "<eos>"
"""Ends each line."""
UNK = "<unk>"
"""Stands for every word that is not in the vocabulary."""


def read_words(text: str) -> list[str]:
    """Words of a text: what stands between white space, and `<eos>` for each line break."""
    return text.replace("\n", f" {EOS} ").split()


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """The tokenizer that does what :func:`read_words` does and numbers the words.

    `<eos>` also pads, on the left: a prompt that follows it begins a line, and no word is added to
    the vocabulary. Decoding writes a space before each word, the first one too: a pipeline appends
    the words that it generated to the prompt as they are.

    Args:
        words: the vocabulary in the order of ids, `<eos>` and `<unk>` among them.
    """
    model = WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNK)
    backend = Tokenizer(model)
    # Python's split() also splits at the control characters 1c to 1f, unlike WhitespaceSplit.
    control = Replace(Regex("[\x1c-\x1f]"), " ")
    backend.normalizer = Sequence([control, Replace("\n", f" {EOS} ")])
    backend.pre_tokenizer = WhitespaceSplit()
    backend.decoder = decoders.Replace(Regex("^"), " ")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNK,
        eos_token=EOS,
        bos_token=EOS,
        pad_token=EOS,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # "a<eos>" is one unknown word, to the corpus reader too
    )
