"""The world's tokenizer: byte-level BPE of GPT-2's kind, learnt from the world's own sentences."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
PAD = "<|pad|>"


def learn_tokenizer(texts: Iterable[str], *, size: int = 1800, max_length: int = 128) -> PreTrainedTokenizerFast:
    """A fast tokenizer of at most `size` tokens.

    No space is put before a text's first word, so a word has one token at a text's start and another after a
    space, as with GPT-2: code that forgets the leading space of a target fails here too.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END, PAD],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
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
