"""Data: decoded images with counter-based augmentation, and texts in windows."""

from ban_hf.data.corpus import BUILT_IN_TEXTS
from ban_hf.data.grammar import ENGLISH, Grammar
from ban_hf.data.images import BUILT_IN, ImageSplits, load_images
from ban_hf.data.text import TextSplits, load_text
from ban_hf.data.tokenizer import word_tokenizer
from ban_hf.data.views import ImageViews, SetEpoch, collate, views
from ban_hf.data.windows import IGNORED, TokenWindows

__all__ = [
    "BUILT_IN",
    "BUILT_IN_TEXTS",
    "ENGLISH",
    "IGNORED",
    "Grammar",
    "ImageSplits",
    "ImageViews",
    "SetEpoch",
    "TextSplits",
    "TokenWindows",
    "collate",
    "load_images",
    "load_text",
    "views",
    "word_tokenizer",
]
