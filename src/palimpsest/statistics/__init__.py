"""Second moments of the keys at a site: from which text, how they are summed, where they are kept."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
