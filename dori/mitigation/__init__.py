"""Defences: prunings, which return a set of units (`units.Units`), and trainings, which mend a model."""
