"""ReasonScore by loops over positions, written from the definition alone."""

import json
import math
from pathlib import Path
from typing import Any

import torch

Groups = dict[str, list[tuple[int, ...]]]


def group_by_word(tokenizer: Any, vocabulary: Path) -> Groups:
    """The words of a vocabulary file, each with the token sequences of its spellings."""
    groups: Groups = {}
    for spelling in json.loads(vocabulary.read_text()):
        ids = tuple(tokenizer.encode(spelling, add_special_tokens=False))
        groups.setdefault(spelling.lstrip().lower(), []).append(ids)
    return groups


def positions_of_word(row: list[int], sequences: list[tuple[int, ...]], left: int, right: int) -> set[int]:
    found = set()
    for sequence in sequences:
        for start in range(len(row)):
            if tuple(row[start : start + len(sequence)]) == sequence:
                for token in range(start, start + len(sequence)):
                    found |= {p for p in range(len(row)) if token - left <= p <= token + right}
    return found


def sets_of_positions(
    rows: list[list[int]], groups: Groups, left: int, right: int, ignored: list[int]
) -> list[set[tuple[int, int]]]:
    """(row, position) of each word, of any word, and of none."""
    words = [
        {
            (b, p)
            for b, row in enumerate(rows)
            for p in positions_of_word(row, sequences, left, right)
            if row[p] not in ignored
        }
        for sequences in groups.values()
    ]
    positive = set().union(*words)
    everything = {(b, p) for b, row in enumerate(rows) for p in range(len(row)) if row[p] not in ignored}
    return [*words, positive, everything - positive]


def reason_scores(activations: torch.Tensor, sets: list[set[tuple[int, int]]], alpha: float) -> list[float]:
    """The score of every feature from activations [rows, pos, features] and `sets_of_positions`."""
    values = activations.double().tolist()

    def mean(positions: set[tuple[int, int]], feature: int) -> float:
        return sum(values[b][p][feature] for b, p in positions) / max(len(positions), 1)

    means = [[mean(positions, feature) for positions in sets] for feature in range(activations.shape[-1])]
    total_pos, total_neg = sum(m[-2] for m in means), sum(m[-1] for m in means)
    scores = []
    for m in means:
        words = m[:-2]
        entropy = 1.0
        if len(words) > 1:
            shares = [word / (sum(words) + 1e-12) for word in words]
            entropy = -sum(s * math.log(s) for s in shares if s > 0) / math.log(len(words))
        scores.append(m[-2] / (total_pos + 1e-12) * entropy**alpha - m[-1] / (total_neg + 1e-12))
    return scores


def parts_of_positions(
    rows: list[list[int]], groups: Groups, left: int, right: int, ignored: list[int], white_space: list[int]
) -> dict[str, set[tuple[int, int]]]:
    """Where the positions of any word are: (row, position) on words, before and after them, and on white space."""
    parts: dict[str, set[tuple[int, int]]] = {name: set() for name in ("on_words", "before", "after", "white_space")}
    for b, row in enumerate(rows):
        matched: set[int] = set()
        for sequences in groups.values():
            matched |= positions_of_word(row, sequences, 0, 0)
        for p, token in enumerate(row):
            to_next = min((m - p for m in matched if m >= p), default=math.inf)
            to_last = min((p - m for m in matched if m <= p), default=math.inf)
            if token in ignored or (to_next > left and to_last > right):
                continue
            if token in white_space:
                parts["white_space"].add((b, p))
            elif p in matched:
                parts["on_words"].add((b, p))
            elif to_next <= left and (to_last > right or to_next <= to_last):
                parts["before"].add((b, p))
            else:
                parts["after"].add((b, p))
    return parts
