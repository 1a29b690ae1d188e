"""Models that can be edited: text to ids to logits, hooks at named sites, and the stack of patches on top.

`sites` says where the families keep their parts, `routing` and `scoped` are what stands beside a model.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
