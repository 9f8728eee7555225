"""The bundled model: its painter, its training, its card, and the models made from it."""
