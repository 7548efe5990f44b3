"""Prepares the recorded tables of the README for `nextarm replay`.

    python -m tools.recorded_tables humaneval|coderouterbench|mmlu_pro --out out/

The tables are not part of this project; they are looked for in `../shared/data` beside the checkout, or in `--recorded`.
Their models, prompts and scores are real; nothing is simulated, and only what is said below is left out or drawn.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parents[1] / "../shared/data"

# -- humaneval: 328 programming tasks x 2 models x 10 recorded answers -------------------------------------------------------

ROUNDS = 2000
DIM = 256


def hash_features(texts: Sequence[str], *, dim: int = DIM) -> np.ndarray:
    """(n, dim) rows of length one: words and character 3-grams, hashed by crc32 into signed log counts.

    Needs no weights and no state, so that anybody can compute the vectors behind a golden number.
    """
    rows = np.zeros((len(texts), dim))
    for row, text in zip(rows, texts, strict=True):
        words = re.findall(r"[A-Za-z_]+|\d+|[^\sA-Za-z_\d]", text.lower())
        grams = Counter([f"w:{word}" for word in words] + [f"c:{text[j : j + 3]}" for j in range(len(text) - 2)])
        for gram, count in grams.items():
            code = zlib.crc32(gram.encode("utf8"))
            row[code % dim] += (1.0 if code >> 31 else -1.0) * np.log1p(count)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def humaneval(recorded: Path, out: Path) -> Path:
    """2,000 rounds, in this order: a task drawn uniformly, and for each model one of its ten recorded answers.

    The labels are the released ones, Markdown fences included (`labels`): Gemini's C++ answers often fail for their fences alone.
    `expected` is the pass rate over the ten answers; `rewards` the drawn answer, passed or not.
    """
    source = np.load(recorded / "humaneval_pair" / "labels.npz")
    labels, kinds = source["labels"], ("python", "cpp")
    rng = np.random.default_rng(2025)
    tasks = rng.integers(0, len(labels), ROUNDS)
    answers = rng.integers(0, labels.shape[2], (ROUNDS, 2))
    features = hash_features([str(prompt) for prompt in source["prompts"]]).astype(np.float32)
    arms = ("gemini-2.5-flash", "qwen-plus")
    path = out / "humaneval.jsonl"
    with path.open("w") as file:
        for task, answer in zip(tasks, answers, strict=True):
            row = {
                "kind": kinds[source["kind"][task]],
                "vector": [float(str(x)) for x in features[task]],  # the shortest digits that are this float32 again
                "rewards": {arm: int(labels[task, k, answer[k]]) for k, arm in enumerate(arms)},
                "expected": {arm: round(float(labels[task, k].mean()), 4) for k, arm in enumerate(arms)},
            }
            file.write(json.dumps(row, separators=(",", ":")) + "\n")
    return path


# -- coderouterbench: 2,919 programming tasks x 8 models, with prices ----------------------------------------------------------


def coderouterbench(recorded: Path, out: Path) -> Path:
    """The released long table as it is, without the columns that a replay does not read."""
    columns = ("task_id", "dimension", "model", "score", "cost_usd")
    path = out / "coderouterbench.csv"
    with (
        gzip.open(recorded / "coderouterbench" / "id_test_long.csv.gz", "rt", newline="") as source,
        path.open("w", newline="") as file,
    ):
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(csv.DictReader(source))
    return path


# -- mmlu_pro: 11,969 questions x 28 models ------------------------------------------------------------------------------------

CHAT_MODELS = (
    "gemini-1.5-pro-002",
    "gemini-1.5-flash-002",
    "Meta-Llama-3_1-70B-Instruct",
    "jamba-1.5-large",
    "Qwen1.5-72B-Chat",
    "Meta-Llama-3_1-8B-Instruct",
    "mathstral-7B",
    "Mixtral-8x7B-Instruct-v0.1",
    "Phi-3-mini-4k-instruct",
    "c4ai-command-r-v01",
)
"""The ten best of the fourteen models that were tuned to follow instructions; left out are Mistral-7B-Instruct v0.1 and v0.2,
Qwen1.5-7B-Chat and Yi-6b-Chat. Over all questions: random .501, best model (the first) .702, best per category .719, per-prompt
oracle .902."""


def mmlu_pro(recorded: Path, out: Path) -> Path:
    """One row per question: its text (without the options), its category, and 0/1 for each of the ten chat models."""
    with gzip.open(recorded / "mmlu_pro" / "prompts.jsonl.gz", "rt") as lines:
        prompts = {str(prompt["id"]): prompt for prompt in map(json.loads, lines)}
    path = out / "mmlu_pro.csv"
    with gzip.open(recorded / "mmlu_pro" / "scores.csv.gz", "rt", newline="") as source, path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "category", "prompt", *CHAT_MODELS])
        for row in csv.DictReader(source):
            prompt = prompts[row["id"]]
            writer.writerow([row["id"], prompt["category"], prompt["question"], *(row[model] for model in CHAT_MODELS)])
    return path


TABLES: dict[str, Callable[[Path, Path], Path]] = {
    "humaneval": humaneval,
    "coderouterbench": coderouterbench,
    "mmlu_pro": mmlu_pro,
}


def main() -> int:
    """Write one replay file and print its path."""
    parser = argparse.ArgumentParser(prog="python -m tools.recorded_tables", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the replay file (default: out)")
    parser.add_argument("--recorded", type=Path, default=DATA, help="folder of the recorded tables")
    chosen = parser.parse_args()
    if not chosen.recorded.is_dir():
        print(f"no tables in {chosen.recorded}; say where they are with --recorded", file=sys.stderr)
        return 1
    chosen.out.mkdir(parents=True, exist_ok=True)
    print(TABLES[chosen.table](chosen.recorded, chosen.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
