"""Ordinary sentences, ours, for the perplexity of models whose data set brings no neutral text of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from palimpsest.evaluation.protocols import EditingProtocol, Single

if TYPE_CHECKING:
    from palimpsest.datasets import Dataset
    from palimpsest.models import EditableModel

ORDINARY = (
    "It had rained all night, and in the morning the garden was full of puddles.",
    "She put the kettle on, sat down at the kitchen table, and opened the letter.",
    "The meeting was moved to Thursday because two of the managers were ill.",
    "Most people sleep better in a room that is cool, dark and quiet.",
    "He could not find his keys, although he had looked everywhere twice.",
    "Plants need light, water and air in order to grow.",
    "The bus was late again, so we walked the last mile to the station.",
    "When the lesson was over, the children ran out into the yard.",
    "If you heat water for long enough, it begins to boil and turns into steam.",
    "My grandmother always said that a good soup takes a whole afternoon.",
    "The company announced that its profits had fallen for the third year in a row.",
    "They had been friends since they were at school together.",
    "A function that calls itself is said to be recursive.",
    "The old bridge was closed last winter, and traffic now goes through the village.",
    "Please turn off the lights and close the windows before you leave.",
    "The doctor told him to rest for a week and to drink plenty of water.",
    "In autumn the leaves turn red and yellow before they fall.",
    "I would like to thank everyone who helped us during the past few months.",
    "The study found no difference between the two groups after six weeks.",
    "The dog waited at the door until its owner came home.",
    "You can pay by card or in cash at the end of the evening.",
    "The second half of the book is much better than the first.",
    "After the storm, many houses were without power for several days.",
    "The teacher asked a simple question, but nobody knew the answer.",
    "We took the stairs because the lift was out of order.",
    "The price of bread has gone up by almost a third since last spring.",
    "He has worked as a carpenter for more than twenty years.",
    "Mix the flour with the eggs and the milk, and leave it to stand for half an hour.",
    "The train to the coast leaves every hour from the main station.",
    "It is easier to learn a language when you use it every day.",
    "The team lost the first match and won the next four.",
    "The museum is open every day except Monday, and entry is free for children.",
)
"""As many as perplexity is measured on."""


def neutral_text_for(model: EditableModel, edits: Dataset, protocol: EditingProtocol) -> Sequence[str]:
    """The data set's own, or ordinary sentences for a decoder where several edits stay at a time: after every single
    edit they would take longer than its probes.
    """
    if edits.neutral_text or model.is_encoder_decoder or isinstance(protocol, Single):
        return edits.neutral_text
    return ORDINARY
