"""Networks: residual and dense ones for small images, and recurrent language models."""
