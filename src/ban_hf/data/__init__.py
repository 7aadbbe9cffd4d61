"""Data: decoded images with counter-based augmentation, and texts in windows."""

from ban_hf.data.augmentation import ImageViews, SetEpoch, collate, views
from ban_hf.data.description import POSITIONS, DescribedDataset, count_items, describe_data
from ban_hf.data.grammar import ENGLISH, Grammar
from ban_hf.data.images import BUILT_IN, ImageSplits, load_images
from ban_hf.data.loading import DataArguments, load_splits
from ban_hf.data.text import BUILT_IN_TEXTS, TextSplits, load_text, word_tokenizer
from ban_hf.data.windows import IGNORED, TokenWindows

__all__ = [
    "BUILT_IN",
    "BUILT_IN_TEXTS",
    "ENGLISH",
    "IGNORED",
    "POSITIONS",
    "DataArguments",
    "DescribedDataset",
    "Grammar",
    "ImageSplits",
    "ImageViews",
    "SetEpoch",
    "TextSplits",
    "TokenWindows",
    "collate",
    "count_items",
    "describe_data",
    "load_images",
    "load_splits",
    "load_text",
    "views",
    "word_tokenizer",
]
