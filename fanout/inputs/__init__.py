"""What goes into a run: documents, splitters, prompts."""
