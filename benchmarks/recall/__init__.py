"""Questions over many texts whose answers are known, how they are scored, and a model that forgets."""
