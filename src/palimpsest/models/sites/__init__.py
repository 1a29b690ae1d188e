"""Sites: where the families of models keep their parts, as data, and proved by a pass over the model itself."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
