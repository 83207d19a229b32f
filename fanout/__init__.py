"""Ask an LLM the same question about very many documents, and get one answer at the end."""
