"""The tables of the paper as commands: each row trained, measured, and set beside its figures."""
