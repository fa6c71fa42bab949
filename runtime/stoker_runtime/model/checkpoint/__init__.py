"""What a model's files say: its architecture, from config.json or GGUF metadata, and its weights by name.

Nothing here knows how a model is computed. A field that would change the result and is not computed anywhere
is refused here, by its name.
"""
