"""The former names of `ban_hf.tasks.auto`, until their callers use that."""

from ban_hf.tasks.auto import auto_class, check_loadable
from ban_hf.tasks.auto import build_model as build_classifier
from ban_hf.tasks.auto import load_model as load_classifier

__all__ = ["auto_class", "build_classifier", "check_loadable", "load_classifier"]
