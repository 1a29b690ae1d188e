"""Palimpsest: update what a language model knows, as small, reversible, verified patches.

    import palimpsest as ps

    model = ps.load("world")
    edit = ps.EditRequest("The capital of France is", subject="France", target_old="Paris", target_new="Lyon")
    outcome = ps.method("ft").edit(model, [edit])
    with model.patched(outcome.patch):
        print(model.generate("The capital of France is"))

Names are resolved when they are first used, so importing the package does not import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
