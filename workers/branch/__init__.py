"""One branch: claim it, call the model, write the outcome."""
