from .base import Capabilities, EditRun, Method, MethodConfig
from .catalogue import METHODS, method
from .editors import TrainedEditor
from .locate_then_edit import LocateThenEdit
from .outcomes import Diagnostics, EditOutcome, MethodState, settle_state
from .problem import LocateThenEditConfig, Problem, Solutions
from .spread_and_solve import Solver, SpreadAndSolve, SpreadConfig
from .trained import TrainableMethod

__all__ = [
    "METHODS",
    "Capabilities",
    "Diagnostics",
    "EditOutcome",
    "EditRun",
    "LocateThenEdit",
    "LocateThenEditConfig",
    "Method",
    "MethodConfig",
    "MethodState",
    "Problem",
    "Solutions",
    "Solver",
    "SpreadAndSolve",
    "SpreadConfig",
    "TrainableMethod",
    "TrainedEditor",
    "method",
    "settle_state",
]
