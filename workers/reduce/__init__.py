"""What happens around the branches of a stage: expand, collect, aggregate."""
