"""The page of the test, and the section that it adds to a feature's page: numbers, and injected texts to look at."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from falsification.injection import Injected
from falsification.material import Experiment, PerText, Unit
from falsification.measure import Encode, observe
from falsification.results import Tested
from falsification.statistics import Estimate
from transformer_lens_r1.shared.files import write_json

PAGE, SECTIONS = "index.html", "sections.json"
EXAMPLES = 3
"""Texts shown for each feature, the first of the experiment."""


class Shown(NamedTuple):
    """A text with the activation on each token."""

    title: str
    tokens: list[tuple[str, float, bool]]
    """Text, activation as a share of the largest on both texts, and whether it was put in."""


def find_examples(
    experiment: Experiment, measured: PerText, encode: Encode, tested: Sequence[Tested], decode: Callable[[int], str]
) -> list[list[Shown]]:
    """For each feature some texts, with the tokens of its best strategy put in and with the controls."""
    found = []
    for feature, one in enumerate(tested):

        def shown(title: str, text: Injected, activations: np.ndarray, largest: float = one.finding.largest) -> Shown:
            shares = activations / (largest or 1)
            tokens = zip(map(decode, text.ids.tolist()), shares.tolist(), text.there.tolist(), strict=True)
            return Shown(title, list(tokens))

        examples: list[Shown] = []
        if one.best:
            unit = Unit(feature, experiment.settings.strategies.index(one.best))
            pairs = itertools.islice(zip(*experiment.variants(unit), strict=True), EXAMPLES)
            texts = [text for pair in pairs for text in pair]  # with the tokens and with controls, in turn
            ids = torch.from_numpy(np.stack([text.ids for text in texts]))
            activations = observe(encode, ids, experiment.settings).of(feature)
            titles = itertools.cycle(("with its tokens", "with control tokens"))
            examples += map(shown, titles, texts, activations)
        for ids, activations in zip(experiment.reasoning_texts[:EXAMPLES], measured.reasoning[feature], strict=False):
            examples.append(shown("reasoning text", Injected(ids, np.zeros(len(ids), dtype=bool)), activations))
        found.append(examples)
    return found


def _number(value: float, form: str = "{:.2f}") -> str:
    return "–" if math.isnan(value) else form.format(value)


def _estimate(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "not defined"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def write_pages(
    folder: Path,
    tested: Sequence[Tested],
    examples: Sequence[Sequence[Shown]],
    decode: Callable[[int], str],
    *,
    about: str,
) -> None:
    """Write the page of the whole, and each feature's section for its page among the dashboards.

    Args:
        folder: where the picture is.
        tested: the features.
        examples: what `find_examples` gave.
        decode: an id's text.
        about: one line on model, SAE and texts; plain text.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "assets"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters |= {"e": html.escape, "number": _number, "estimate": _estimate}
    environment.globals["ngrams"] = lambda grams: ["".join(decode(token) for token in gram) for gram in grams]
    template = environment.get_template("section.html")
    sections = {
        str(one.feature): template.render(one=one, finding=one.finding, examples=shown)
        for one, shown in zip(tested, examples, strict=True)
    }
    write_json(folder / SECTIONS, sections)
    page = environment.get_template("falsification.html").render(
        about=about, tested=tested, sections=sections, counts=_counts(tested)
    )
    (folder / PAGE).write_text(page, encoding="utf-8")


def _counts(tested: Sequence[Tested]) -> list[tuple[str, dict[str, int]]]:
    """How many features got each verdict: of the top ones, and of those matched to them."""
    groups = {"top": [], "matched": []}
    for one in tested:
        groups["top" if one.matched_to is None else "matched"].append(one.finding.verdict)
    return [
        (name, {verdict: found.count(verdict) for verdict in sorted(set(found))})
        for name, found in groups.items()
        if found
    ]
