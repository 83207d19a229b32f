"""The corpus of ``benchmarks/documents.py``: files of many formats whose text is known."""
