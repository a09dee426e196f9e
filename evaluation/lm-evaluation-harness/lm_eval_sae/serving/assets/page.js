// The same question for the baseline and for steered variants, side by side. Text of the model is only ever text.
"use strict";

const LISTED = 50; // of the features that a search finds
const MOST_COLUMNS = 6; // browsers open no more connections to a server at once
const $ = (selector, within = document) => within.querySelector(selector);
const columns = [];
let info, wordPattern, key, running;

function element(name, text, className) {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

/* Text with the reasoning words in it marked, and how many there are. Words are whole, as the report counts them. */
function marked(text) {
  const parts = [];
  let end = 0, count = 0;
  for (const match of text.matchAll(wordPattern)) {
    parts.push(text.slice(end, match.index), element("mark", match[0]));
    end = match.index + match[0].length;
    count += 1;
  }
  return { parts: [...parts, text.slice(end)], count };
}

function snippetOf(feature) {
  const [before, peak, after] = feature.snippet;
  const made = element("span", before, "snippet");
  made.append(element("mark", peak), after);
  return made;
}

/* The API key is asked for where the server says that it needs one. */
async function post(body, signal) {
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch("v1/chat/completions", { method: "POST", headers, signal, body: JSON.stringify(body) });
  if (response.ok) return response;
  if (response.status === 401) {
    $("#key-row").hidden = false;
    throw new Error("this server needs its API key: give it above, and ask again");
  }
  const { error } = await response.json().catch(() => ({}));
  throw new Error(error?.message ?? `the server answered ${response.status}`);
}

/* The objects of a stream of server-sent events. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

class Column {
  constructor(steered, { feature, strength, mode } = {}) {
    this.root = $("#column").content.cloneNode(true).firstElementChild;
    this.status = $(".status", this.root);
    this.answer = $(".answer", this.root);
    this.steered = steered;
    $("h2", this.root).textContent = steered ? "Steered" : "Baseline";
    $("#columns").append(this.root);
    columns.push(this);
    if (!steered) {
      $(".steering", this.root).remove();
      return;
    }
    this.strength = $(".strength", this.root);
    this.mode = $(".mode", this.root);
    this.maximum = $(".maximum", this.root);
    this.picker = $(".picker", this.root);
    this.search = $("input", this.picker);
    if (strength != null) this.strength.value = strength;
    if (mode != null) this.mode.value = mode;
    this.strength.addEventListener("input", () => this.showValue());
    this.maximum.addEventListener("input", () => this.showValue());
    this.search.addEventListener("input", () => this.list());
    this.search.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      $("li button", this.picker)?.click();
    });
    $(".remove", this.root).addEventListener("click", () => this.remove());
    this.list();
    this.choose(feature ?? info.features[0]?.feature ?? 0);
  }

  remove() {
    columns.splice(columns.indexOf(this), 1);
    this.root.remove();
    $("#add").disabled = false;
  }

  /* Features of the dashboards that have the searched text or number, and any index of the SAE. */
  list() {
    const wanted = this.search.value.trim().toLowerCase();
    const found = info.features.filter((feature) =>
      `${feature.feature}\n${feature.snippet.join("")}`.toLowerCase().includes(wanted)
    );
    const items = found.slice(0, LISTED).map((feature) => {
      const about = ` · rank ${feature.rank} · ReasonScore ${feature.score.toPrecision(3)}`;
      return this.item(feature.feature, about, snippetOf(feature));
    });
    const index = Number(wanted);
    if (/^\d+$/.test(wanted) && index < info.d_sae && !found.some((feature) => feature.feature === index)) {
      items.unshift(this.item(index, " · not in the dashboards", ""));
    }
    $("ul", this.picker).replaceChildren(...items);
  }

  item(index, about, snippet) {
    const button = element("button", `feature ${index}${about}`);
    button.type = "button";
    button.append(document.createElement("br"), snippet);
    button.addEventListener("click", () => this.choose(index));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }

  choose(index) {
    this.feature = index;
    const known = info.features.find((feature) => feature.feature === index);
    const summary = element("summary", `feature ${index}${known ? ` · rank ${known.rank}` : ""} `);
    if (known) summary.append(snippetOf(known));
    $("summary", this.picker).replaceWith(summary);
    this.picker.open = false;
    const page = $(".page", this.root);
    page.hidden = !known;
    if (known) page.href = `dashboards/${known.page}`;
    $(".maximum-row", this.root).hidden = info.max_activations !== null;
    this.maximum.value = info.max_activations?.[index] ?? known?.max_activation ?? "";
    this.showValue();
  }

  showValue() {
    const strength = this.strength.valueAsNumber, maximum = this.maximum.valueAsNumber;
    const value = maximum > 0 ? `${strength} × ${maximum} = ${Number((strength * maximum).toPrecision(4))}` : `${strength} ×`;
    $(".value", this.root).textContent = value;
  }

  intervention() {
    const given = info.max_activations === null && this.maximum.value !== "";
    return {
      sae_feature_idx: this.feature, sae_strength: this.strength.valueAsNumber, sae_mode: this.mode.value,
      ...(given && { sae_max_activation: this.maximum.valueAsNumber }),
    };
  }

  async ask(question, signal) {
    this.text = "";
    this.tokens = 0;
    this.finish = "";
    this.show("…");
    try {
      const body = { ...question, ...(this.steered && { vllm_xargs: this.intervention() }) };
      for await (const event of events(await post(body, signal))) {
        if (event.error) throw new Error(event.error.message);
        const delta = event.choices[0]?.delta ?? {};
        this.text += (delta.reasoning ?? "") + (delta.content ?? "");
        this.tokens = event.usage?.completion_tokens ?? this.tokens;
        this.finish = event.choices[0]?.finish_reason ?? this.finish;
        this.frame ??= requestAnimationFrame(() => this.show("…"));
      }
      this.show(this.finish === "length" ? "cut off" : "done");
    } catch (error) {
      if (signal.aborted) this.show("stopped");
      else this.show(error.message, true);
    }
  }

  show(state, failed = false) {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    const { parts, count } = marked(this.text);
    this.answer.replaceChildren(...parts);
    const counts = this.text ? `${this.tokens} tokens · reasoning words: ${count} · ` : "";
    this.status.textContent = counts + state;
    this.status.classList.toggle("failed", failed);
  }
}

async function ask() {
  key = $("#key").value || key;
  const number = (id) => $(id).valueAsNumber;
  const question = {
    messages: [{ role: "user", content: $("#question").value }],
    temperature: number("#temperature"), max_tokens: number("#max_tokens"), seed: number("#seed"),
    stream: true, stream_options: { include_usage: true, continuous_usage_stats: true },
  };
  running = new AbortController();
  $("#send").disabled = true;
  $("#stop").disabled = false;
  await Promise.all(columns.map((column) => column.ask(question, running.signal)));
  $("#send").disabled = false;
  $("#stop").disabled = true;
}

function addColumn(intervention) {
  new Column(true, intervention);
  $("#add").disabled = columns.length >= MOST_COLUMNS;
}

async function start() {
  info = await (await fetch("sae/info")).json();
  const words = info.words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replace(/\s+/g, "\\s+"));
  wordPattern = new RegExp(`(?<![\\p{L}\\p{N}_])(?:${words.join("|")})(?![\\p{L}\\p{N}_])`, "gu");
  $("#model").textContent = `${info.model} · SAE at ${info.hook_name} with ${info.d_sae.toLocaleString("en")} features`;
  $("#dashboards").hidden = !info.dashboards;
  const link = new URLSearchParams(location.search);
  const index = link.get("feature");
  new Column(false);
  addColumn({ feature: index === null ? null : Number(index), strength: link.get("strength"), mode: link.get("mode") });
  $("#ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  $("#question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("#send").disabled) $("#ask").requestSubmit();
  });
  $("#stop").addEventListener("click", () => running.abort());
  $("#add").addEventListener("click", () => addColumn());
}

start();
