"""Training: of a model's own weights, of adapters beside them, and of the networks that edit models."""
