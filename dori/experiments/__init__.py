"""The experiments of the book and of the commands: a study in, a tidy table out."""
