"""Methods: one mathematics each; what they share lives in `locating`, `training`, `statistics` and `solve`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
