// Single questions side by side. Texts lie compressed in the page, and only those that are looked at are unpacked.
"use strict";

const data = JSON.parse(document.querySelector("#data").textContent);
const list = document.querySelector("#list");
const detail = document.querySelector("#detail");
const search = document.querySelector("#search");
const order = document.querySelector("#order");
const several = data.questions.some((question) => question.answers > 1);
const FILTERS = [
  ["all", "all", () => true],
  ["worse", several ? "less often right" : "right → wrong", (q) => q.steered.accuracy < q.plain.accuracy],
  ["better", several ? "more often right" : "wrong → right", (q) => q.steered.accuracy > q.plain.accuracy],
  ["right", "both right", (q) => q.plain.accuracy === 1 && q.steered.accuracy === 1],
  ["wrong", "both wrong", (q) => q.plain.accuracy === 0 && q.steered.accuracy === 0],
  ["same", "same text", (q) => q.same],
  ["cut", "cut off", (q) => q.plain.truncated > 0 || q.steered.truncated > 0],
];
// The longest form first, as where the words were counted.
const escaped = data.forms.map((form) =>
  form.split(/\s+/).map((part) => part.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&")).join("\\s+")
);
const wordPattern = escaped.length
  ? new RegExp(`(?<![\\p{L}\\p{N}_])(?:${escaped.join("|")})(?![\\p{L}\\p{N}_])`, "gu")
  : null;
const PREVIEW_CHARACTERS = 220;
let filter = "all";
let shown = [];
let current = null;

function element(name, content, attributes = {}) {
  const node = document.createElement(name);
  if (typeof content === "string") node.textContent = content;
  else if (content) node.append(...content);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

const known = (value) => value !== null && value !== undefined;
const number = (value, digits = 0) =>
  known(value) ? value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits }) : "–";

function verdict(accuracy) {
  if (!known(accuracy)) return element("span", "not scored");
  if (accuracy === 1) return element("span", "right", { class: "right" });
  if (accuracy === 0) return element("span", "wrong", { class: "wrong" });
  return element("span", `right in ${number(100 * accuracy)} %`);
}

const lengthening = (q) =>
  known(q.plain.tokens) && known(q.steered.tokens) && q.plain.tokens > 0 ? q.steered.tokens / q.plain.tokens : 1;
const ORDERS = {
  id: (a, b) => a.index - b.index,
  longer: (a, b) => lengthening(b) - lengthening(a),
  shorter: (a, b) => lengthening(a) - lengthening(b),
  differs: (a, b) => b.differs - a.differs,
};

function listed(question) {
  const lengths = known(question.plain.tokens)
    ? ` · ${number(question.plain.tokens)} → ${number(question.steered.tokens)} tokens` : "";
  const line = element("small", [
    `${question.id} · `, verdict(question.plain.accuracy), " → ", verdict(question.steered.accuracy), lengths,
  ]);
  const button = element("button", [line, element("span", question.question.slice(0, PREVIEW_CHARACTERS), { class: "preview" })], { type: "button" });
  button.addEventListener("click", () => select(question));
  return element("li", [button]);
}

data.questions.forEach((question, index) => {
  question.index = index;
  question.item = listed(question);
  question.text = `${question.question}\n${question.target}`.toLowerCase();
});

function refresh() {
  const accepts = FILTERS.find(([name]) => name === filter)[2];
  const wanted = search.value.trim().toLowerCase();
  shown = data.questions.filter((q) => accepts(q) && q.text.includes(wanted)).sort(ORDERS[order.value]);
  list.replaceChildren(...shown.map((question) => question.item));
  document.querySelector("#count").textContent = `${shown.length} of ${data.questions.length} question${data.questions.length === 1 ? "" : "s"}`;
  for (const button of document.querySelectorAll("#filters button")) {
    button.setAttribute("aria-pressed", button.dataset.filter === filter);
  }
}

for (const [name, label, accepts] of FILTERS) {
  const button = element("button", `${label} (${data.questions.filter(accepts).length})`, {
    type: "button", "data-filter": name,
  });
  button.addEventListener("click", () => { filter = name; refresh(); });
  document.querySelector("#filters").append(button, " ");
}

async function texts(question) {
  const packed = document.querySelector(`#texts-${question.index}`).textContent;
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

// Where two texts part, not inside a character of two halves.
function firstDifference(a, b) {
  let i = 0;
  while (i < a.length && i < b.length && a[i] === b[i]) i += 1;
  return i > 0 && /[\uD800-\uDBFF]/.test(a[i - 1]) ? i - 1 : i;
}

// Where a text has reasoning words, as [start, end]. Words are sought in the whole text: a part of it, cut inside
// "waiting", would seem to hold a word that it does not.
function wordsOf(text) {
  const matches = wordPattern ? text.matchAll(wordPattern) : [];
  return Array.from(matches, (match) => [match.index, match.index + match[0].length]);
}

// The part of a text from one place to another, with its reasoning words marked.
function marked(text, words, from, to) {
  const parts = [];
  let end = from;
  for (const [wordStart, wordEnd] of words) {
    const [start, stop] = [Math.max(wordStart, from), Math.min(wordEnd, to)];
    if (start >= stop) continue;
    parts.push(text.slice(end, start), element("mark", text.slice(start, stop)));
    end = stop;
  }
  parts.push(text.slice(end, to));
  return parts;
}

function answer(text, at, differs) {
  const box = element("div", null, { class: "answer", tabindex: "0" });
  const words = wordsOf(text);
  box.append(element("span", marked(text, words, 0, at), { class: "same" }));
  if (differs) {
    const word = /^\s*\S{0,40}/u.exec(text.slice(at))[0];
    const mark = element("mark", word || "∎ ends here", { class: "differs", title: "first difference" });
    box.append(mark, ...marked(text, words, at + word.length, text.length));
  }
  return box;
}

function panel(name, text, numbers, at, differs) {
  const facts = [verdict(numbers.accuracy)];
  if (known(numbers.tokens)) facts.push(` · ${number(numbers.tokens)} tokens`);
  if (known(numbers.reasoning)) facts.push(`, ${number(numbers.reasoning)} of reasoning`);
  if (numbers.truncated) facts.push(" · cut off by the limit");
  if (numbers.undecided) facts.push(" · undecided");
  return element("section", [element("h3", name), element("p", facts), answer(text, at, differs)]);
}

function wordTable(question) {
  const head = ["", "baseline", "steered", "baseline per 1,000 tokens", "steered per 1,000 tokens"];
  const rate = (side, count) => (side.allTokens > 0 ? number((1000 * count) / side.allTokens, 2) : "–");
  const rows = data.words
    .map((word, i) => [word, question.plain.words[i], question.steered.words[i]])
    .filter(([, a, b]) => a + b > 0)
    .sort((a, b) => b[1] + b[2] - a[1] - a[2])
    .map(([word, a, b]) =>
      element("tr", [
        element("th", word, { scope: "row" }),
        ...[number(a), number(b), rate(question.plain, a), rate(question.steered, b)].map((cell) => element("td", cell)),
      ])
    );
  const note = question.answers > 1 ? ", in all answers together" : "";
  const title = element("h3", rows.length ? `Reasoning words${note}` : `No reasoning word occurs${note}`);
  if (!rows.length) return [title];
  const header = element("tr", head.map((cell) => element("th", cell, { scope: "col" })));
  const table = element("table", [element("thead", [header]), element("tbody", rows)], { class: "words" });
  return [title, element("div", [table], { class: "wide", tabindex: "0" })];
}

function showAnswers(place, content, repeat) {
  const [plain, steered] = [content.plain[repeat], content.steered[repeat]];
  const differs = plain.text !== steered.text;
  const at = firstDifference(plain.text, steered.text);
  place.replaceChildren(
    panel("Baseline", plain.text, plain, at, differs), panel("Steered", steered.text, steered, at, differs)
  );
  for (const mark of place.querySelectorAll("mark.differs")) {
    mark.parentElement.scrollTop = mark.offsetTop - mark.parentElement.clientHeight / 3;
  }
  return differs ? `They differ from character ${number(at + 1)} on.` : "Both texts are the same.";
}

async function select(question) {
  current?.item.firstChild.removeAttribute("aria-current");
  current = question;
  question.item.firstChild.setAttribute("aria-current", "true");
  question.item.scrollIntoView({ block: "nearest" });
  history.replaceState(null, "", `#${question.index}`);
  const content = await texts(question);
  if (current !== question) return; // another was chosen while this one was unpacked
  const place = element("div", null, { class: "answers" });
  const where = element("p", null, { id: "difference", class: "quiet" });
  const parts = [
    element("h2", `Question ${question.id}`),
    element("div", content.question, { class: "question", tabindex: "0" }),
    element("p", ["Answer key: ", element("code", content.target)]),
  ];
  if (content.plain.length > 1) {
    const choice = element("select", content.plain.map((_, i) => element("option", String(i + 1), { value: i })));
    choice.addEventListener("change", () => { where.textContent = showAnswers(place, content, Number(choice.value)); });
    const note = content.plain.length < question.answers ? ` (${question.answers} were given; these are in this page)` : "";
    parts.push(element("p", [element("label", ["Answer ", choice]), ` of ${content.plain.length}${note}`]));
  }
  detail.replaceChildren(...parts, where, place, ...wordTable(question));
  where.textContent = showAnswers(place, content, 0);
}

document.addEventListener("keydown", (event) => {
  const step = { j: 1, k: -1 }[event.key];
  if (!step || event.ctrlKey || event.metaKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const next = shown[shown.indexOf(current) + step];
  if (next) select(next);
});
search.addEventListener("input", refresh);
order.addEventListener("change", refresh);
refresh();
const first = data.questions[Number(location.hash.slice(1))] ?? shown[0];
if (first) select(first);
