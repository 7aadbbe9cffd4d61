"""The command line: `ban-hf` and what the recipes share."""
