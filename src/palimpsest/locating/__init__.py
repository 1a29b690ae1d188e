"""Where in a model a fact is written, and what is to be written there: contexts, keys, target vectors, spreading."""

from palimpsest.locating.answer_chunks import chunk_rows
from palimpsest.locating.contexts import NO_CONTEXTS, ContextOptions, context_templates, encode_in_context, in_context
from palimpsest.locating.first_token import PROMPT_ALONE, apart_from_sink, first_token_notes, kept_rows
from palimpsest.locating.last_layer import AnswerPlaces, answer_places, queries_of
from palimpsest.locating.other_subjects import (
    about,
    subjects_alike,
    subjects_beside,
    unrelated_prompts,
    well_known_subjects,
)
from palimpsest.locating.spreading import Spreading, as_patch, spread
from palimpsest.locating.subject_vectors import KeyPooling, SubjectRows, key_columns, subject_rows, subject_vectors

__all__ = [
    "NO_CONTEXTS",
    "PROMPT_ALONE",
    "AnswerPlaces",
    "ContextOptions",
    "KeyPooling",
    "Spreading",
    "SubjectRows",
    "about",
    "answer_places",
    "apart_from_sink",
    "as_patch",
    "chunk_rows",
    "context_templates",
    "encode_in_context",
    "first_token_notes",
    "in_context",
    "kept_rows",
    "key_columns",
    "queries_of",
    "spread",
    "subject_rows",
    "subject_vectors",
    "subjects_alike",
    "subjects_beside",
    "unrelated_prompts",
    "well_known_subjects",
]
