"""The experiments of the book, a module per chapter: a study in, a tidy table out."""
