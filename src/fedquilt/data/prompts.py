"""From instruction, context and response to one sequence: what the model reads, and what it learns to write.

A sequence is prompt, response, end token. Prompt and response are tokenised apart, so that the prompt is, token for token, what
generation will start from. Responses are cut at ``max_length`` (and then lack the end token: the text does not end there); an
example whose prompt leaves no room for a token of the response is skipped: it gets no tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedquilt.data.spec import Prompt
from fedquilt.errors import DataError

# Taori et al. 2023, "Stanford Alpaca", prompt of the released code; FedIT (Shepherd) trains Dolly with it.
ALPACA = """\
Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Response:
"""
ALPACA_CONTEXT = """\
Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Input:
{context}

### Response:
"""


def render(texts: Sequence[tuple[str, ...]], prompt: Prompt, tokenizer: Any) -> list[tuple[str, ...]]:
    """(prompt, response) of each (instruction, context, response).

    Raises:
        DataError: ``chat``, but the tokenizer has no chat template.
    """
    if prompt == "chat" and not getattr(tokenizer, "chat_template", None):
        raise DataError("the tokenizer has no chat template", where="tasks.prompt", fix='prompt = "alpaca"')
    write = _chat if prompt == "chat" else _alpaca
    return [(write(instruction, context, tokenizer), response.strip()) for instruction, context, response in texts]


def _alpaca(instruction: str, context: str, tokenizer: Any) -> str:
    if not context.strip():
        return ALPACA.format(instruction=instruction)
    return ALPACA_CONTEXT.format(instruction=instruction, context=context)


def _chat(instruction: str, context: str, tokenizer: Any) -> str:
    """One turn of the user, context after the instruction, up to where the assistant begins."""
    content = f"{instruction}\n\n{context}" if context.strip() else instruction
    turn = [{"role": "user", "content": content}]
    return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))


def tokenise(pairs: Sequence[tuple[str, ...]], prompt: Prompt, tokenizer: Any, max_length: int) -> dict[str, NDArray[Any]]:
    """``tokens [T]``, ``types [T]`` (1: of the response or the end token), ``offsets [n + 1]`` and how many were cut.

    Raises:
        DataError: the tokenizer has no end token.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise DataError("the tokenizer has no end token", where="model.name", fix="a response must end; choose another model")
    # A chat template writes its own special tokens; without one the tokenizer's own beginning (Llama's <s>) belongs there.
    asked = _ids(tokenizer, [pair[0] for pair in pairs], special=prompt == "alpaca")
    answers = _ids(tokenizer, [pair[1] for pair in pairs], special=False)
    tokens, types, lengths, truncated = [], [], [], 0
    for question, answer in zip(asked, answers, strict=True):
        question = question[:-1] if question and question[-1] in (end, tokenizer.sep_token_id) else question
        whole = [*question, *answer, end]
        fits = 0 < len(question) < max_length and len(answer) > 0
        kept = whole[:max_length] if fits else []
        truncated += fits and len(whole) > max_length
        tokens += kept
        types += [0] * len(question) + [1] * (len(kept) - len(question)) if fits else []
        lengths.append(len(kept))
    return {
        "tokens": np.array(tokens, np.int32),
        "types": np.array(types, np.uint8),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "truncated": np.array(truncated),
    }


def _ids(tokenizer: Any, texts: list[str], *, special: bool) -> list[list[int]]:
    found: Mapping[str, Any] = tokenizer(texts, add_special_tokens=special, verbose=False)
    ids: list[list[int]] = found["input_ids"]
    return ids
