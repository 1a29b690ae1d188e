"""Where in a model a fact is written, and what is to be written there: contexts, keys, target vectors, spreading."""
