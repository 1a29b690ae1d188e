"""AlphaEdit: changes that no key of the preserved text can see."""

from palimpsest.methods.alphaedit.edited_keys import EditedKeys
from palimpsest.methods.alphaedit.method import AlphaEdit, AlphaEditConfig

__all__ = ["AlphaEdit", "AlphaEditConfig", "EditedKeys"]
