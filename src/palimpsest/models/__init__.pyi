from . import tokens
from .activations import activation, activation_of, gate_activation_of
from .attention_call import AttentionCall
from .bypass import cast_above, frozen_parameters
from .chat import THOUGHT_TOKENS, Chat, ChatRecord, chosen_chat
from .configured import departures, generate_as_configured, written_as_configured
from .conversations import Conversations
from .editable import EditableModel
from .encoders import NgramEncoder, TextEncoder, inner_products, load_encoder, most_similar, text_encoder
from .fingerprint import exact_digest, fingerprint_differences
from .following import next_by_prompt, next_tokens, to_be_answered
from .generation import (
    DEFAULT_ROWS,
    AnswerRoom,
    Writer,
    logits_by_step,
    own_repetitions,
    replies_to,
    written_answers,
)
from .hooks import Attachment, Intervention, Point, attach, captured, intervened
from .layers import layer_number, layer_numbers
from .patch_stack import PatchStack
from .placement import whole_tensor
from .scores import TargetScore, leads
from .stacked_change import StackedChange
from .suffix import SAME_WITHIN, Suffix, prepare_suffix, require_decoder
from .templates import has_chat_template, render_chat
from .tokens import (
    Encoded,
    PaddedBatch,
    by_length,
    encode,
    encode_apart,
    subject_first_token,
    subject_last_token,
    token_spans,
)

__all__ = [
    "DEFAULT_ROWS",
    "SAME_WITHIN",
    "THOUGHT_TOKENS",
    "AnswerRoom",
    "Attachment",
    "AttentionCall",
    "Chat",
    "ChatRecord",
    "Conversations",
    "EditableModel",
    "Encoded",
    "Intervention",
    "NgramEncoder",
    "PaddedBatch",
    "PatchStack",
    "Point",
    "StackedChange",
    "Suffix",
    "TargetScore",
    "TextEncoder",
    "Writer",
    "activation",
    "activation_of",
    "attach",
    "by_length",
    "captured",
    "cast_above",
    "chosen_chat",
    "departures",
    "encode",
    "encode_apart",
    "exact_digest",
    "fingerprint_differences",
    "frozen_parameters",
    "gate_activation_of",
    "generate_as_configured",
    "has_chat_template",
    "inner_products",
    "intervened",
    "layer_number",
    "layer_numbers",
    "leads",
    "load_encoder",
    "logits_by_step",
    "most_similar",
    "next_by_prompt",
    "next_tokens",
    "own_repetitions",
    "prepare_suffix",
    "render_chat",
    "replies_to",
    "require_decoder",
    "subject_first_token",
    "subject_last_token",
    "text_encoder",
    "to_be_answered",
    "token_spans",
    "tokens",
    "whole_tensor",
    "written_answers",
    "written_as_configured",
]
