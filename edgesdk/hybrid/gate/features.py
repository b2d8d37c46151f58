"""What a prompt looks like from outside: numbers that cost microseconds and know no topic.

Length, numbers, operators and the kind of question are what tells apart the prompts that a small
model gets right from those that it gets wrong, before a token of them was computed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgesdk.hybrid.privacy.policy import texts_in

# A document that is pasted in is judged by its beginning and its end, where questions are.
_MOST_CHARACTERS = 20_000
_LARGEST = 18.0

_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"\d[\d,_]*(?:\.\d+)?")
# Hyphens, dashes of lists and slashes between words are none.
_OPERATOR = re.compile(r"[+*^=<>%×÷√∑∫≤≥≠]|(?<=[\d)\]])[-/]|(?<=[\w)\]] )[-/](?= [\w(\[])")
_BRACKET = re.compile(r"[()\[\]{}]")
_CODE_SIGN = re.compile(r"[{}\[\]();_=<>$\\|&#@`]")
_CODE_LINE = re.compile(
    r"^\s*(?:def |class |import |from \w+ import|function |const |let |var |return\b|if ?\(|for ?\("
    r"|while ?\(|SELECT |INSERT |public |private |#include|</?\w+)",
    re.MULTILINE,
)
_LIST_LINE = re.compile(r"^\s*(?:[-*•]|\d+[.)、]|step \d+)\s", re.MULTILINE | re.IGNORECASE)
_CHOICE_LINE = re.compile(r"^\s*\(?[A-Ea-e][).:]\s", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?…](?=\s|$)|[。！？]")
# Scripts by their blocks; what a small model was trained on decides how well it reads them.
_SCRIPTS = {
    "han": r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]",
    "cyrillic": r"[\u0370-\u052f]",
    "semitic": r"[\u0590-\u08ff]",
    "indic": r"[\u0900-\u0eff]",
}
_KINDS = {
    "fact": r"\b(?:what|who|whom|whose|when|where|which)\b|什么|谁|哪|何时",
    "reason": r"\b(?:why|how|explain|compare|difference|reason)\b|为什么|怎么|如何|解释|比较",
    "proof": r"\b(?:prove|proof|derive|show that|theorem|lemma)\b|证明|推导",
    "sum": r"\b(?:calculate|compute|evaluate|solve|simplify|how (?:many|much)|sum|product"
    r"|difference|percent\w*|average)\b|计算|求|多少|几",
    "writing": r"\b(?:write|story|poem|essay|email|letter|rewrite|rephrase|summari[sz]e"
    r"|translate)\b|写|翻译|总结|改写",
    "programming": r"\b(?:code|function|program|python|javascript|java|sql|regex|bug|algorithm"
    r"|implement)\b|代码|函数|程序|算法",
    "steps": r"\b(?:step by step|steps?|first|then|finally|list|each|every|all)\b"
    r"|步骤|首先|然后|列出",
    "strictness": r"\b(?:exactly|only|must|never|at least|at most|without|format|json)\b"
    r"|必须|只|至少|至多|格式",
}
_SCRIPT_PATTERNS = {name: re.compile(pattern) for name, pattern in _SCRIPTS.items()}
_KIND_PATTERNS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in _KINDS.items()}

Messages = Sequence[Mapping[str, Any]]


def features(messages: Messages) -> npt.NDArray[np.float64]:
    """Of the conversation that an answer is asked to, float64 [len(NAMES)], finite."""
    return np.array(list(_measured(messages).values()), np.float64)


def question_in(messages: Messages) -> str:
    """The words of the user's last message; those of the last one where no user spoke."""
    asked = [message for message in messages if message.get("role") == "user"]
    last = (asked or list(messages))[-1:]
    return "\n".join(text for message in last for text in texts_in(_words(message)))


def _words(message: Mapping[str, Any]) -> list[Any]:
    """The texts of a message; pictures and the like are data, not words."""
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, Sequence) else ()
    return [part.get("text") or "" for part in parts if isinstance(part, Mapping)]


def _measured(messages: Messages) -> dict[str, float]:
    whole = question_in(messages)
    text = whole
    if len(whole) > _MOST_CHARACTERS:
        half = _MOST_CHARACTERS // 2
        text = f"{whole[:half]}\n{whole[-half:]}"
    every = sum(len(text) for message in messages for text in _words(message))
    letters = _WORD.findall(text)
    numbers = [_magnitude(number) for number in _NUMBER.findall(text)]
    size = max(len(text), 1)
    found = {
        "characters": math.log1p(len(whole)),
        "context_characters": math.log1p(max(every - len(whole), 0)),
        "turns": math.log1p(sum(message.get("role") == "user" for message in messages)),
        "words": math.log1p(len(letters)),
        "word_length": sum(map(len, letters)) / max(len(letters), 1),
        "different_words": len({word.lower() for word in letters}) / max(len(letters), 1),
        "lines": math.log1p(text.count("\n")),
        "sentences": math.log1p(len(_SENTENCE_END.findall(text))),
        "questions": math.log1p(len(re.findall(r"[?？]", text))),
        "digits": sum(map(str.isdigit, text)) / size,
        "numbers": math.log1p(len(numbers)),
        "largest_number": max(numbers, default=0.0),
        "mean_number": sum(numbers) / max(len(numbers), 1),
        "operators": math.log1p(len(_OPERATOR.findall(text))),
        "depth": float(_depth(text)),
        "fences": math.log1p(text.count("```")),
        "code_lines": math.log1p(len(_CODE_LINE.findall(text))),
        "code_signs": len(_CODE_SIGN.findall(text)) / size,
        "list_lines": math.log1p(len(_LIST_LINE.findall(text))),
        "choices": math.log1p(len(_CHOICE_LINE.findall(text))),
        "capitals": sum(map(str.isupper, text)) / size,
        "beyond_ascii": sum(char > "\x7f" for char in text) / size,
    }
    found |= {name: len(p.findall(text)) / size for name, p in _SCRIPT_PATTERNS.items()}
    found |= {name: math.log1p(len(p.findall(text))) for name, p in _KIND_PATTERNS.items()}
    return found


def _magnitude(number: str) -> float:
    """Decimal digits of a number, as log10(1 + n); a number may have thousands of them."""
    whole = re.sub(r"[,_]", "", number).partition(".")[0]
    return min(math.log10(1 + int(whole[:20])) + max(len(whole) - 20, 0), _LARGEST)


def _depth(text: str) -> int:
    """How deep brackets are nested, up to 10."""
    depth = deepest = 0
    for bracket in _BRACKET.findall(text):
        depth = depth + 1 if bracket in "([{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return min(deepest, 10)


NAMES: tuple[str, ...] = tuple(_measured([{"role": "user", "content": ""}]))
