from setuptools import find_packages, setup

setup(packages=[*find_packages("src"), "ban_hf.model_cards", "ban_hf.paper_tables"])
