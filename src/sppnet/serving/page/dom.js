// DOM elements, number formatting, and announcements to screen readers.

let count = 0;

/** Create an element. Function attributes become listeners (onclick), booleans toggle the attribute. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") node.toggleAttribute(name, value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** A paragraph of secondary text. */
export const muted = (text) => el("p", { class: "muted" }, text);

/** An error message. */
export const errorMessage = ({ message }) => el("p", { class: "error", role: "alert" }, message);

/** A figure with related content next to it, or below it on narrow screens. */
export const columns = (figure, ...side) =>
  el("div", { class: "columns" }, el("div", { class: "figure" }, ...figure), el("div", { class: "side" }, ...side));

/** A slider with a label and an output element for its value. */
export function slider(name, value, range, oninput) {
  const id = unique("slider");
  const input = el("input", { id, type: "range", ...range, oninput });
  return { node: el("div", { class: "slider" }, el("label", { for: id }, name), value, input), input };
}

/** An ID that is unique on the page. */
const unique = (stem) => `${stem}-${++count}`;

export function percent(share, digits = 1) {
  const smallest = 10 ** -digits;
  return share > 0 && 100 * share < smallest / 2 ? `<${smallest}%` : `${(100 * share).toFixed(digits)}%`;
}

/** A number with its sign; small ones are shown with two significant digits. */
export function signed(value) {
  const magnitude = Math.abs(value);
  const digits = magnitude >= 0.1 || magnitude === 0 ? 2 : Math.min(6, 1 - Math.floor(Math.log10(magnitude)));
  const text = magnitude.toFixed(digits);
  return Number(text) === 0 ? "0" : `${value < 0 ? "−" : "+"}${text}`;
}

/** A detector's score. */
export const score = (value) => value.toFixed(2).replace("-", "−");

/** "3 × 3 bins" or "13 rows × 19 columns of cells". */
export function grid(rows, columns, word) {
  if (rows * columns === 1) return `1 ${word}`;
  return rows === columns ? `${rows} × ${columns} ${word}s` : `${rows} rows × ${columns} columns of ${word}s`;
}

/** Format [height, width] as "width × height pixels". */
export const pixels = ([height, width]) => `${width} × ${height} pixels`;

/** Announce a text to screen readers. */
export function announce(text) {
  document.getElementById("status").textContent = text;
}

/** A group of radio buttons. `options` are [value, content] pairs; `content` is text or a node. */
export function radios(legend, options, selected, onchange, className = "chips") {
  const name = unique("choice");
  const rows = options.map(([value, content]) =>
    el(
      "label",
      {},
      el("input", {
        type: "radio",
        name,
        value: String(value),
        checked: value === selected,
        onchange: () => onchange(value),
      }),
      el("span", {}, content),
    ),
  );
  return el("fieldset", { class: className }, el("legend", {}, legend), ...rows);
}

/** A scrollable table; cells are text or nodes, and the first cell of each row is its header. */
export function table(caption, head, rows) {
  const heads = head.map((text) => el("th", { scope: "col" }, text));
  const body = rows.map(([first, ...rest]) =>
    el("tr", {}, el("th", { scope: "row" }, first), ...rest.map((cell) => el("td", {}, cell))),
  );
  const inner = el(
    "table",
    {},
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, ...heads)),
    el("tbody", {}, ...body),
  );
  return el("div", { class: "wide", role: "region", "aria-label": caption, tabindex: "0" }, inner);
}
