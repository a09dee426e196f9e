"""Feature interfaces as pages that open without a network: SAEDashboard's panels in our frame, and an index of them."""

from __future__ import annotations

import functools
import html
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_dashboard.feature_data import FeatureData
    from sae_dashboard.layout import SaeVisLayoutConfig
    from transformers import PreTrainedTokenizerBase

ASSETS = Path(__file__).resolve().parent / "assets"
CDN_SCRIPT = re.compile(r'<script src="https?://[^"]*"></script>\s*')


@dataclass(frozen=True)
class FeatureFacts:
    """What the index and a feature's page say about it in words."""

    feature: int
    rank: int
    """Among all features by ReasonScore, from 1."""
    score: float
    max_activation: float
    """Over the scored text, in units where the decoder direction has norm 1."""
    firing_frequency: float
    """Share of the scored positions."""
    entropy: float
    best_word: str

    @property
    def page(self) -> str:
        return f"feature_{self.feature}.html"


def token_text(tokenizer: PreTrainedTokenizerBase) -> Callable[[Any], Any]:
    """A function from one id to its text as people read it (line breaks visible), and from a list of ids to a list."""

    @functools.cache
    def one(token: int) -> str:
        return tokenizer.decode([token], clean_up_tokenization_spaces=False).replace("\n", "↵").replace("\t", "⇥")

    def decode(tokens: Any) -> Any:
        if hasattr(tokens, "tolist"):
            tokens = tokens.tolist()
        return one(tokens) if isinstance(tokens, int) else [decode(token) for token in tokens]

    return decode


def write_assets(folder: Path) -> None:
    """Put the scripts that the pages load into ``folder``/assets: plotly from its Python package, and our own."""
    import plotly

    (folder / "assets").mkdir()
    shutil.copy(Path(plotly.__file__).parent / "package_data" / "plotly.min.js", folder / "assets")
    shutil.copy(ASSETS / "d3_selection.js", folder / "assets")


def write_feature_page(
    folder: Path,
    facts: FeatureFacts,
    data: FeatureData,
    layout: SaeVisLayoutConfig,
    decode: Callable[[Any], Any],
) -> None:
    """Write the page of one feature.

    Args:
        folder: where the assets are.
        facts: of the feature.
        data: what SAEDashboard computed for it.
        layout: which panels to show.
        decode: what `token_text` gave.
    """
    from sae_dashboard.html_fns import HTML

    panels = data._get_html_data_feature_centric(layout, decode)
    script_data = {"AGGDATA": {}, "DASHBOARD_DATA": {str(facts.feature): panels.js_data}}
    path = folder / facts.page
    HTML(html_data=panels.html_data, js_data=script_data).get_html(
        layout_columns=layout.columns, layout_height=layout.height, filename=path, first_key=str(facts.feature)
    )
    body = CDN_SCRIPT.sub("", path.read_text())
    embedded = json.dumps(script_data)
    # Text must not be able to end the script element it stands in, nor to become elements of its own.
    body = body.replace(embedded, embedded.replace("<", "\\u003c"))
    body = body.replace("${tok}</code>", "${escapeHtml(tok)}</code>")
    page = Template((ASSETS / "feature.html").read_text(encoding="utf-8")).substitute(
        title=f"Feature {facts.feature}", facts=_facts_line(facts), panels=body
    )
    path.write_text(page, encoding="utf-8")


def _facts_line(facts: FeatureFacts) -> str:
    return " · ".join(
        (
            f"rank {facts.rank}",
            f"ReasonScore {facts.score:.3e}",
            f"max activation {facts.max_activation:.4g}",
            f"active on {facts.firing_frequency:.3%} of tokens",
            f"entropy {facts.entropy:.3f}",
            f"strongest word “{html.escape(facts.best_word)}”",
            f"steer with <code>sae_feature_idx={facts.feature},sae_max_activation={facts.max_activation:.4g}</code>",
        )
    )


def best_snippet(data: FeatureData, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text around the highest activation as HTML, the token itself marked; empty where the feature never fires."""
    groups = data.sequence_data.seq_group_data
    if not groups or not groups[0].seq_data:
        return ""
    best = max(groups[0].seq_data, key=lambda sequence: max(sequence.feat_acts))
    peak = max(range(len(best.feat_acts)), key=best.feat_acts.__getitem__)
    if best.feat_acts[peak] <= 0:
        return ""

    def text(tokens: list[int]) -> str:
        decoded = tokenizer.decode(tokens, clean_up_tokenization_spaces=False) if tokens else ""
        return html.escape(decoded.replace("\n", "↵"))

    ids = best.token_ids
    return f"{text(ids[:peak])}<mark>{text([ids[peak]])}</mark>{text(ids[peak + 1 :])}"


def write_index(folder: Path, rows: list[tuple[FeatureFacts, str]], *, title: str, facts: str) -> None:
    """Write the index.

    Args:
        folder: where the pages are.
        rows: features in the order to show, each with its snippet (HTML; `best_snippet`).
        title: plain text.
        facts: one line on model, SAE and text; plain text.
    """
    lines = [
        f'<tr><td>{f.rank}</td><td><a href="{f.page}">{f.feature}</a></td><td>{f.score:.3e}</td>'
        f"<td>{f.max_activation:.3f}</td><td>{f.firing_frequency:.2%}</td><td>{f.entropy:.3f}</td>"
        f'<td class="text">{html.escape(f.best_word)}</td><td class="text snippet">{snippet}</td></tr>'
        for f, snippet in rows
    ]
    page = Template((ASSETS / "index.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title), facts=html.escape(facts), rows="\n".join(lines)
    )
    (folder / "index.html").write_text(page, encoding="utf-8")
