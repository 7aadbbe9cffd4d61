"""Statistics, tables, figures and model cards of measured networks."""
