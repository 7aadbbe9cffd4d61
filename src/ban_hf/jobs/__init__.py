"""Trainings and ensembles as jobs: what one is, how it runs, how it is measured."""
