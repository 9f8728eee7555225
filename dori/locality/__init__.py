"""Is a memory in one place? Distances of embeddings, what they activate, the units they point at."""
