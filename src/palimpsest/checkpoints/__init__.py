"""Checkpoints: from a name to a transformers model and its tokenizer, with every file looked at before it is used."""
