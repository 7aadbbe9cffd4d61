"""The tables of the paper, a file each; `ban_hf.paper` reads them."""
