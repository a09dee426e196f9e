"""Feature interfaces as pages that open without a network: SAEDashboard's panels in our frame, and an index of them."""

from __future__ import annotations

import functools
import html
import importlib.metadata
import itertools
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from transformer_lens_r1.shared.files import atomic_file, write_json

if TYPE_CHECKING:
    from sae_dashboard.feature_data import FeatureData
    from sae_dashboard.layout import SaeVisLayoutConfig
    from transformers import PreTrainedTokenizerBase

ASSETS = Path(__file__).resolve().parent / "assets"
CDN_SCRIPT = re.compile(r'<script src="https?://[^"]*"></script>\s*')
# red, green, blue; laid over the page, light or dark, so that text on them can be read.
ACTIVE, LOWERED, RAISED = "255,140,0", "225,70,60", "70,130,245"
VISIBLE = str.maketrans({"\n": "↵", "\t": "⇥", "\r": "␍", "\N{ZERO WIDTH SPACE}": "␣", "\N{NO-BREAK SPACE}": " "})
CUT = "\N{REPLACEMENT CHARACTER}"
"""What decoders give for a character of which not all bytes are there."""
# Where SAEDashboard's page script puts a token's text into HTML, and how often.
UNESCAPED = {"${tok}</code>": 3, "`|${tok}|<br>": 1}


@dataclass(frozen=True)
class FeatureFacts:
    """What the index and a feature's page say about it in words."""

    feature: int
    rank: int
    """Among all features by ReasonScore, from 1."""
    score: float
    interval: tuple[float, float] | None
    """95 % interval of the score, if there is one."""
    max_activation: float | None
    """Over the scored text, in units where the decoder direction has norm 1. If the scores came alone: None until the
    pass, then over the text shown."""
    firing_frequency: float | None
    """Share of the scored positions; None if the scores came alone."""
    entropy: float | None
    """Likewise."""
    word_means: tuple[tuple[str, float], ...]
    """Mean activation at each reasoning word; empty if the scores came alone."""
    parts: tuple[tuple[str, float], ...] = ()
    """Share of its activation on reasoning positions in each of their parts, NaN if it has none there; empty if not
    known."""
    similar: tuple[tuple[int, int], ...] = ()
    """Index and rank of the features that nearly coincide with it, best first."""

    @property
    def scores_alone(self) -> bool:
        """Whether nothing but the score is known from the scored text."""
        return not self.word_means

    @property
    def page(self) -> str:
        return f"feature_{self.feature}.html"

    @property
    def best_word(self) -> str:
        return max(self.word_means, key=lambda pair: pair[1])[0]

    @property
    def shares(self) -> list[tuple[str, float, float]]:
        """Each word, its mean activation, and that as a share of the largest."""
        highest = max(mean for _, mean in self.word_means)
        return [(word, mean, max(0.0, mean) / highest if highest > 0 else 0.0) for word, mean in self.word_means]

    @property
    def steering(self) -> str:
        """The arguments that steer with this feature; nine digits say a float32 exactly."""
        return f"sae_feature_idx={self.feature},sae_max_activation={self.max_activation:.9g}"


class Snippet(NamedTuple):
    """The text around a feature's highest activation; all empty if the feature never fires."""

    before: str
    peak: str
    after: str


def write_assets(folder: Path) -> None:
    """Put what the pages load, and its licences, into ``folder``/assets: plotly and d3 from their Python packages."""
    import mpld3.urls
    import plotly

    assets = folder / "assets"
    assets.mkdir(exist_ok=True)
    for file in ASSETS.glob("*.*"):
        if file.suffix != ".html":
            shutil.copy(file, assets)
    shutil.copy(Path(plotly.__file__).parent / "package_data" / "plotly.min.js", assets)
    shutil.copy(mpld3.urls.D3_LOCAL, assets / "d3.min.js")
    licence = importlib.metadata.distribution("plotly").read_text("licenses/LICENSE.txt")
    (assets / "LICENSE.plotly.txt").write_text(licence or "plotly.js: MIT licence\n", encoding="utf-8")


def write_feature_page(
    folder: Path,
    facts: FeatureFacts,
    data: FeatureData,
    layout: SaeVisLayoutConfig,
    decode: Callable[[Any], Any],
    *,
    neighbours: tuple[FeatureFacts | None, FeatureFacts | None] = (None, None),
    section: str = "",
) -> None:
    """Write the page of one feature.

    Args:
        folder: where the assets are, or will be.
        facts: of the feature.
        data: what SAEDashboard computed for it.
        layout: which panels to show.
        decode: what `token_text` gave.
        neighbours: the features before and after it in the index.
        section: HTML to put behind the panels.
    """
    from sae_dashboard.html_fns import HTML

    panels = data._get_html_data_feature_centric(layout, decode)
    _own_text_and_colours(panels.js_data, data, decode)
    script_data = {"AGGDATA": {}, "DASHBOARD_DATA": {str(facts.feature): panels.js_data}}
    with atomic_file(folder / facts.page) as path:
        HTML(html_data=panels.html_data, js_data=script_data).get_html(
            layout_columns=layout.columns, layout_height=layout.height, filename=path, first_key=str(facts.feature)
        )
        body = CDN_SCRIPT.sub("", path.read_text(encoding="utf-8"))
        embedded = json.dumps(script_data)
        # Text must not be able to end the script element it stands in, nor to become elements of its own.
        if body.count(embedded) != 1:
            raise RuntimeError("SAEDashboard's page is not as expected: its data do not stand there once")
        body = body.replace(embedded, embedded.replace("<", "\\u003c"))
        for unescaped, times in UNESCAPED.items():
            if "tokenData" in panels.js_data and body.count(unescaped) != times:
                raise RuntimeError(f"SAEDashboard's page script has changed: {unescaped} is not there {times} times")
            body = body.replace(unescaped, unescaped.replace("${tok}", "${escapeHtml(tok)}"))
        before, after = neighbours
        dead = not data.sequence_data.seq_group_data
        page = _fill("feature.html", facts=facts, before=before, after=after, dead=dead, panels=body, section=section)
        path.write_text(page, encoding="utf-8")


def _fill(template: str, **values: Any) -> str:
    environment = Environment(loader=FileSystemLoader(ASSETS), undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["e"] = html.escape
    return environment.get_template(template).render(values)


def _own_text_and_colours(js_data: dict[str, Any], data: FeatureData, decode: Callable[[Any], Any]) -> None:
    """Change what the page script gets for each token.

    The text is the token's own (SAEDashboard takes ``&lt;`` in it for ``<``); colours are laid over the page's own, so
    that they read on a dark one too; and the tokens that mark the end of a row go. So do the histograms' ticks, of
    which there are tens of thousands if all values are below 0.3: without them plotly chooses.
    """
    highest = data.sequence_data.max_feat_act
    for group in js_data.get("tokenData", {}).values():
        group["data"] = [[token for token in sequence if token["tokID"] >= 0] for sequence in group["data"]]
        for token in (token for sequence in group["data"] for token in sequence):
            token["bgColor"] = _shade(ACTIVE, max(0.0, token.get("featAct", 0.0)) / highest)
            token["uColor"] = "transparent"
            token["tok"] = decode(token["tokID"])
    for name in ("actsHistogramData", "logitsHistogramData"):
        for histogram in js_data.get(name, {}).values():
            del histogram["ticks"]
    logits = data.logits_table_data
    largest = max(map(abs, (*logits.bottom_logits, *logits.top_logits)), default=0.0) or 1.0
    for table in js_data.get("logitsTableData", {}).values():
        for name, ids, colour in (
            ("negLogits", logits.bottom_token_ids, LOWERED),
            ("posLogits", logits.top_token_ids, RAISED),
        ):
            for row, token in zip(table[name], ids, strict=False):
                row["symbol"], row["color"] = decode(token), _shade(colour, abs(row["value"]) / largest)


def _shade(colour: str, share: float) -> str:
    return f"rgba({colour},{0.7 * share:.3f})"


def token_text(tokenizer: PreTrainedTokenizerBase) -> Callable[[Any], Any]:
    """A function from one id to its text, and from a list of ids to a list; an id below 0 is no text."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}

    @functools.cache
    def one(token: int) -> str:
        if token < 0:
            return ""
        text = span_text(tokenizer, [token])
        piece = tokenizer.convert_ids_to_tokens(token) or ""
        if CUT in text and (match := re.fullmatch("<0x([0-9A-Fa-f]{2})>", piece)):
            return f"\\x{match[1].lower()}"
        if CUT in text and all(character in byte_of for character in piece):
            text = bytes(byte_of[character] for character in piece).decode("utf-8", "backslashreplace")
        return text.translate(VISIBLE)

    def decode(tokens: Any) -> Any:
        if hasattr(tokens, "tolist"):
            tokens = tokens.tolist()
        return one(tokens) if isinstance(tokens, int) else [decode(token) for token in tokens]

    return decode


def span_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of neighbouring ids, characters that lie across several of them whole, line breaks visible."""
    if not tokens:
        return ""
    text = tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)
    # SentencePiece's decoders take the space away that the first word begins with.
    if (tokenizer.convert_ids_to_tokens(tokens[0]) or "").startswith("▁") and not text.startswith(" "):
        text = f" {text}"
    return text.translate(VISIBLE)


def best_snippet(data: FeatureData, tokenizer: PreTrainedTokenizerBase) -> Snippet:
    """The text around the highest activation."""
    groups = data.sequence_data.seq_group_data
    best = max(groups[0].seq_data if groups else [], key=lambda sequence: max(sequence.feat_acts), default=None)
    if best is None:
        return Snippet("", "", "")
    shown = [pair for pair in zip(best.token_ids, best.feat_acts, strict=True) if pair[0] >= 0]
    ids, activations = zip(*shown, strict=True)
    return marked(tokenizer, ids, activations.index(max(activations)))


def marked(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], peak: int) -> Snippet:
    """The text with the token at ``peak`` marked, and as few of its neighbours as make whole characters of it."""
    uncut = span_text(tokenizer, ids).count(CUT)
    # A character has at most four bytes.
    for left, right in sorted(itertools.product(range(4), repeat=2), key=sum):
        start, end = max(0, peak - left), peak + right + 1
        snippet = Snippet(*(span_text(tokenizer, part) for part in (ids[:start], ids[start:end], ids[end:])))
        if sum(part.count(CUT) for part in snippet) <= uncut:
            break
    return snippet._replace(before=snippet.before.lstrip(" "))


def write_index(folder: Path, rows: Sequence[tuple[FeatureFacts, Snippet]], *, title: str, about: str) -> None:
    """Write the index, and what it says in short for other programs (features.json).

    Args:
        folder: where the pages are.
        rows: features in the order to show, each with its snippet.
        title: plain text.
        about: one line on model, SAE and text; plain text.
    """
    words = ", ".join(word for word, _ in rows[0][0].word_means)
    page = _fill("index.html", title=title, about=about, words=words, rows=rows)
    (folder / "index.html").write_text(page, encoding="utf-8")
    features = [
        {
            "feature": facts.feature, "rank": facts.rank, "score": facts.score, "max_activation": facts.max_activation,
            "snippet": snippet, "page": facts.page,
        }
        for facts, snippet in rows
    ]  # fmt: skip
    write_json(folder / "features.json", features)
