"""Synthetic worlds whose golden picks are known: pure NumPy, every draw in the stated order from one seeded generator."""

from __future__ import annotations

import hashlib
import re
import zlib

import numpy as np

from bandits.simulation import World


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to length one."""
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def prompt_clusters(*, rounds: int = 600) -> World:
    """Golden G2: three clusters of prompts on the sphere in R^8, three arms with Bernoulli rewards, each best for one cluster."""
    g = np.random.default_rng(7)
    centres = unit(g.standard_normal((3, 8)))
    cluster = g.integers(0, 3, size=rounds)
    x = unit(centres[cluster] + 0.25 * g.standard_normal((rounds, 8)))
    p = np.array([[0.9, 0.4, 0.5], [0.3, 0.8, 0.5], [0.4, 0.3, 0.7]])
    return World(features=x, rewards=(g.random((rounds, 3)) < p[cluster]).astype(float), expected=p[cluster])


def hashed_text(texts: list[str], *, dim: int = 256) -> np.ndarray:
    """Golden G6: (n, dim) words and character 3-grams, hashed by crc32 into signed log counts, rows of length one."""
    rows = np.zeros((len(texts), dim))
    for row, text in enumerate(texts):
        words = re.findall(r"[A-Za-z_]+|\d+|[^\sA-Za-z_\d]", text.lower())
        counts: dict[str, int] = {}
        for gram in [f"w:{word}" for word in words] + [f"c:{text[i : i + 3]}" for i in range(len(text) - 2)]:
            counts[gram] = counts.get(gram, 0) + 1
        for gram, count in counts.items():
            code = zlib.crc32(gram.encode())
            rows[row, code % dim] += (1.0 if code & 0x80000000 else -1.0) * np.log1p(count)
    return unit(rows)


def recorded_answers(labels: np.ndarray, prompts: list[str]) -> World:
    """Golden G6: 2,000 rounds of recorded pass/fail labels (tasks, arms, answers): a task, and per arm one of its ten answers."""
    g = np.random.default_rng(2025)
    tasks = g.integers(0, len(labels), 2000)
    answers = g.integers(0, 10, (2000, 2))
    rewards = labels[tasks[:, None], np.arange(2)[None, :], answers].astype(float)
    return World(features=hashed_text(prompts)[tasks], rewards=rewards, expected=labels.mean(axis=2)[tasks])


def sha256(picks: np.ndarray) -> str:
    """Of the picks as bytes, which is how golden picks are written down."""
    return hashlib.sha256(picks.astype(np.uint8).tobytes()).hexdigest()
