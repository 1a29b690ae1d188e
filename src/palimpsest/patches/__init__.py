"""Patches: changes by an edit that apply, come off exactly, add up, and are saved as data."""

from palimpsest.patches.base import MANIFEST_FILE, Applied, Manifest, Patch, checked_base, checked_chat
from palimpsest.patches.branches import Branch
from palimpsest.patches.card import CARD, Measured, plain
from palimpsest.patches.codebook import SILENCED, Codebook, CodebookEntry, Replacement
from palimpsest.patches.export import write_adapter, write_merged, write_patched
from palimpsest.patches.folders import patched_base, put_on_all
from palimpsest.patches.hub import Publication, prepare_upload, publish, require_hub_id
from palimpsest.patches.inputs import InputPatch, filled_template
from palimpsest.patches.keyed import KeyedBranch
from palimpsest.patches.memory import MemoryEntry, MemoryPatch
from palimpsest.patches.modules import ModulePatch
from palimpsest.patches.neurons import Neurons
from palimpsest.patches.prompts import prompt_columns
from palimpsest.patches.retrieval import Retrieval, RetrievalEntry
from palimpsest.patches.routers import EditorReference, RouterPatch, Routing
from palimpsest.patches.side_memories import KnownEdit, SideMemories, SideMemory, indicators, standing_back
from palimpsest.patches.storage import load_patch
from palimpsest.patches.weights import Delta, Dense, LowRank, WeightPatch

__all__ = [
    "CARD",
    "MANIFEST_FILE",
    "SILENCED",
    "Applied",
    "Branch",
    "Codebook",
    "CodebookEntry",
    "Delta",
    "Dense",
    "EditorReference",
    "InputPatch",
    "KeyedBranch",
    "KnownEdit",
    "LowRank",
    "Manifest",
    "Measured",
    "MemoryEntry",
    "MemoryPatch",
    "ModulePatch",
    "Neurons",
    "Patch",
    "Publication",
    "Replacement",
    "Retrieval",
    "RetrievalEntry",
    "RouterPatch",
    "Routing",
    "SideMemories",
    "SideMemory",
    "WeightPatch",
    "checked_base",
    "checked_chat",
    "filled_template",
    "indicators",
    "load_patch",
    "patched_base",
    "plain",
    "prepare_upload",
    "prompt_columns",
    "publish",
    "put_on_all",
    "require_hub_id",
    "standing_back",
    "write_adapter",
    "write_merged",
    "write_patched",
]
