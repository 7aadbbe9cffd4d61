"""The public names, and where each is: `__init__.py` imports it when it is first used."""
