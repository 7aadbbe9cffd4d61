"""The tables of the paper, a file each; `ban-hf reproduce` reads them."""
