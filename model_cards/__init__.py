"""Jinja templates of the model cards, shipped as the resources of `ban_hf.model_cards`."""
