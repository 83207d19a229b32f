"""The inputs of a run: readers of documents, splitters, prompt templates, and their intake checks."""
