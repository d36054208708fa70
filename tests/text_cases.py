"""Small models of transformers with random weights, and a tokenizer of whole words, for tests of texts."""

import copy
import itertools
from functools import cache
from typing import Any

import torch

from bll_pyro.scope import isolated

TOPICS = (
    ("how", "do", "i", "block", "my", "card"),
    ("what", "is", "the", "exchange", "rate"),
    ("please", "tell", "me", "a", "joke", "about", "cats", "and", "dogs"),
)
SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}


def tokenizer(padding_side: str = "right", pad_token: str | None = "[PAD]") -> Any:
    """Words to numbers; a first and a last token around each text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *sorted(itertools.chain(*TOPICS))])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    words.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=pad_token,
        unk_token="[UNK]",
        padding_side=padding_side,
        model_max_length=20,
    )


@cache
def _made(kind: str) -> Any:
    import transformers

    sizes = {**SIZES, "vocab_size": 40, "max_position_embeddings": 24, "pad_token_id": 0}
    made = {
        "bert": lambda: transformers.BertModel(transformers.BertConfig(**sizes)),
        "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(**sizes)),
        "gpt2": lambda: transformers.GPT2Model(
            transformers.GPT2Config(
                n_embd=16, n_layer=3, n_head=2, vocab_size=40, n_positions=24, bos_token_id=2, eos_token_id=3
            )
        ),
    }
    with isolated(0):
        return made[kind]().eval()


def network(kind: str) -> Any:
    """A copy of a small model."""
    return copy.deepcopy(_made(kind))


def texts_and_intents(num_rows: int, seed: int = 0) -> tuple[list[str], torch.Tensor]:
    """Made-up questions of 1 to 8 words about cards (0), rates (1) or jokes (2)."""
    random = torch.Generator().manual_seed(seed)
    texts, intents = [], torch.arange(num_rows) % 3
    for intent in intents.tolist():
        words = TOPICS[intent]
        length = int(torch.randint(1, 9, (), generator=random))
        texts.append(" ".join(words[int(i)] for i in torch.randint(len(words), (length,), generator=random)))
    return texts, intents
