"""Models beside the model: which of the remembered edits a prompt is about, and a small model that reads them."""
