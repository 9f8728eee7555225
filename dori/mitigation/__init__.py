"""Defences. The pruning methods return a set of units (`units.Units`); the others return a mended model."""
