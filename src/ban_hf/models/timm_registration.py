"""Loaded as soon as timm is: makes `timm.create_model` know our networks."""

from .presets import register_with_timm

register_with_timm()
