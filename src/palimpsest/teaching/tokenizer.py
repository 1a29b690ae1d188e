"""The world's tokenizers: byte-level BPE, learnt from the world's own sentences."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
PAD = "<|pad|>"

# T5's own names for the same, and its order: padding is token 0.
TEXT_TO_TEXT_PAD = "<pad>"
TEXT_TO_TEXT_END = "</s>"


def learn_tokenizer(texts: Iterable[str], *, size: int = 1800, max_length: int = 128) -> PreTrainedTokenizerFast:
    """A fast tokenizer of GPT-2's kind, of at most `size` tokens.

    No space is put before a text's first word, so a word has one token at a text's start and another after a
    space, as with GPT-2: code that forgets the leading space of a target fails here too.
    """
    tokenizer = _learn(texts, size, specials=[END, PAD], add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        bos_token=END,
        unk_token=END,
        pad_token=PAD,
        add_prefix_space=False,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def learn_text_to_text_tokenizer(
    texts: Iterable[str], *, size: int = 1800, max_length: int = 512
) -> PreTrainedTokenizerFast:
    """A fast tokenizer that behaves as T5's does, of at most `size` tokens.

    A word has the same token at a text's start and after a space, and every text gets an end token.
    """
    tokenizer = _learn(texts, size, specials=[TEXT_TO_TEXT_PAD, TEXT_TO_TEXT_END], add_prefix_space=True)
    end = (TEXT_TO_TEXT_END, tokenizer.token_to_id(TEXT_TO_TEXT_END))
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(add_prefix_space=True, trim_offsets=True),
            processors.TemplateProcessing(single=f"$A {end[0]}", pair=f"$A {end[0]} $B {end[0]}", special_tokens=[end]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TEXT_TO_TEXT_END,
        unk_token=TEXT_TO_TEXT_END,
        pad_token=TEXT_TO_TEXT_PAD,
        add_prefix_space=True,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def _learn(texts: Iterable[str], size: int, *, specials: list[str], add_prefix_space: bool) -> Tokenizer:
    """Byte-level BPE whose first tokens are the special ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=specials,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
