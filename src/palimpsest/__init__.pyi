from .datasets import Dataset, dataset
from .errors import ConfigError, DataError, ModelError, OutputError, PalimpsestError, PatchError
from .evaluation import Batch, RunRecord, Sequential, Single, assess, evaluate
from .loading import load
from .methods import EditOutcome, Method, MethodState, TrainedEditor, method
from .models import EditableModel
from .models.sites import Architecture, Part
from .patches import Patch, WeightPatch, load_patch
from .requests import EditRequest, Probe

__all__ = [
    "Architecture",
    "Batch",
    "ConfigError",
    "DataError",
    "Dataset",
    "EditOutcome",
    "EditRequest",
    "EditableModel",
    "Method",
    "MethodState",
    "ModelError",
    "OutputError",
    "PalimpsestError",
    "Part",
    "Patch",
    "PatchError",
    "Probe",
    "RunRecord",
    "Sequential",
    "Single",
    "TrainedEditor",
    "WeightPatch",
    "assess",
    "dataset",
    "evaluate",
    "load",
    "load_patch",
    "method",
]
