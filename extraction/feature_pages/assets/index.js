// Sorting by a column and searching.
"use strict";

const body = document.querySelector("tbody");
const rows = [...body.rows];
const headers = [...document.querySelectorAll("thead th")];
const search = document.querySelector("#search");
const count = document.querySelector("#count");

function value(row, column) {
  const text = row.cells[column].querySelector("data").value;
  return headers[column].dataset.type === "text" ? text : Number(text);
}

function sort(column, direction) {
  const sign = direction === "ascending" ? 1 : -1;
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
  // Array.sort is stable: rows that are equal keep their order by rank.
  const sorted = [...rows].sort((a, b) => sign * compare(value(a, column), value(b, column)));
  body.append(...sorted);
  headers.forEach((header, i) => {
    if (i === column) header.setAttribute("aria-sort", direction);
    else header.removeAttribute("aria-sort");
  });
}

headers.forEach((header, column) => {
  header.querySelector("button")?.addEventListener("click", () => {
    const first = header.dataset.first;
    const other = first === "ascending" ? "descending" : "ascending";
    sort(column, header.getAttribute("aria-sort") === first ? other : first);
  });
});

// What is searched: feature, those like it, words and snippet. Numbers beside each other must not read as one.
const texts = new Map(
  rows.map((row) => {
    const parts = [row.cells[1], row.cells[2], row.querySelector(".snippet")].map((cell) => cell.textContent);
    parts.push(row.querySelector(".bars")?.getAttribute("aria-label") ?? "");
    return [row, parts.join("\n").toLowerCase()];
  })
);

function filter() {
  const wanted = search.value.trim().toLowerCase();
  let shown = 0;
  for (const row of rows) {
    row.hidden = !texts.get(row).includes(wanted);
    shown += !row.hidden;
  }
  count.textContent = wanted ? `${shown} of ${rows.length}` : `${rows.length} features`;
}

search.addEventListener("input", filter);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== search) {
    event.preventDefault();
    search.focus();
  }
});
filter();
