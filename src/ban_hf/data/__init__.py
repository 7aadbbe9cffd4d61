"""Data: decoded images with counter-based augmentation."""

from ban_hf.data.images import BUILT_IN, ImageSplits, load_images
from ban_hf.data.views import ImageViews, SetEpoch, collate, views

__all__ = ["BUILT_IN", "ImageSplits", "ImageViews", "SetEpoch", "collate", "load_images", "views"]
