"""Records: what a network is, who taught it, what it measured."""
