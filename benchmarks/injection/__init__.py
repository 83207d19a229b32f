"""Instructions planted where prompts get text from, and a model that obeys them."""
