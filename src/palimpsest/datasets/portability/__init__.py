"""The portability builder: questions whose answer follows from an edit, proposed, filtered, reviewed by people."""

from palimpsest.datasets.portability.asking import Message, NoProposal
from palimpsest.datasets.portability.building import Summary, build
from palimpsest.datasets.portability.cached_answers import CachedAnswers
from palimpsest.datasets.portability.cost import RequestEstimate, estimate, estimated
from palimpsest.datasets.portability.endpoint import Endpoint
from palimpsest.datasets.portability.generators import ChatGenerator, Completer, Generator, LocalModel, TableGenerator
from palimpsest.datasets.portability.items import Item, Proposal
from palimpsest.datasets.portability.publishing import prepare_questions
from palimpsest.datasets.portability.review import is_build, read_reviewed

__all__ = [
    "CachedAnswers",
    "ChatGenerator",
    "Completer",
    "Endpoint",
    "Generator",
    "Item",
    "LocalModel",
    "Message",
    "NoProposal",
    "Proposal",
    "RequestEstimate",
    "Summary",
    "TableGenerator",
    "build",
    "estimate",
    "estimated",
    "is_build",
    "prepare_questions",
    "read_reviewed",
]
