// Sorts tables by a column and filters them by text. Without this script the page is complete, but static.
"use strict";

const COLLATOR = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

for (const box of document.querySelectorAll(".table")) {
  makeSortable(box);
  if (box.querySelector(".filter")) makeFilterable(box);
}

function makeSortable(box) {
  const headers = [...box.querySelectorAll("thead th")];
  headers.forEach((header, column) => {
    if (header.dataset.kind === "tile") return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(box, headers, column));
    header.append(button);
  });
}

function sort(box, headers, column) {
  const header = headers[column];
  const text = header.dataset.kind === "text";
  const before = header.getAttribute("aria-sort");
  // The first click sorts numbers from the largest down, and text from A to Z.
  const descending = before ? before === "ascending" : !text;
  for (const other of headers) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");

  const body = box.querySelector("tbody");
  const keyed = [...body.rows].map((row) => ({ row, key: keyOf(row.cells[column], text) }));
  keyed.sort((a, b) => compare(a.key, b.key, descending));
  body.append(...keyed.map(({ row }) => row));
}

function keyOf(cell, text) {
  if (text) return cell.textContent.trim() || null;
  return "value" in cell.dataset ? Number(cell.dataset.value) : null;
}

// Missing values come last in both directions.
function compare(a, b, descending) {
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === "string" ? COLLATOR.compare(a, b) : a - b;
  return descending ? -order : order;
}

function makeFilterable(box) {
  const field = box.querySelector("input[type=search]");
  const status = box.querySelector("[role=status]");
  const rows = [...box.querySelectorAll("tbody tr")].map((row) => ({ row, text: normalised(textOf(row)) }));
  const apply = () => {
    const words = normalised(field.value).split(/\s+/).filter(Boolean);
    let visible = 0;
    for (const { row, text } of rows) {
      row.hidden = !words.every((word) => text.includes(word));
      visible += !row.hidden;
    }
    status.textContent = `${visible.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
  };
  field.addEventListener("input", apply);
  box.querySelector(".filter").hidden = false;
  apply(); // after "back", the browser restores the text in the field
}

// Numbers are not searched: "77" means a class, not 0.774 or 77 rows.
function textOf(row) {
  return [...row.cells].filter((cell) => !cell.classList.contains("number")).map((cell) => cell.textContent).join(" ");
}

function normalised(text) {
  return text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
}
