"""The tasks around the branches of a stage: expand, collect, aggregate."""
