"""Data: decoded images with counter-based augmentation, and texts in windows."""
