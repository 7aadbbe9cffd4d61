"""One training: arguments, trainer, loss, teacher, ensemble."""
