// Elements, numbers as text, and what is said to screen readers.

let count = 0;

/** An element: functions are listeners (onclick), booleans are attributes that are there or not. */
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

/** A paragraph that says something beside. */
export const soft = (text) => el("p", { class: "soft" }, text);

/** What went wrong, for people. */
export const problem = ({ message }) => el("p", { class: "error", role: "alert" }, message);

/** A picture, and beside or beneath it what belongs to it. */
export const columns = (figure, ...side) =>
  el("div", { class: "columns" }, el("div", { class: "figure" }, ...figure), el("div", { class: "side" }, ...side));

/** A slider with its name and its value, which is an output. */
export function slider(name, value, range, oninput) {
  const id = unique("slider");
  const input = el("input", { id, type: "range", ...range, oninput });
  return { node: el("div", { class: "slider" }, el("label", { for: id }, name), value, input), input };
}

/** A name that no other element of the page has. */
const unique = (stem) => `${stem}-${++count}`;

export function percent(share, digits = 1) {
  const least = 10 ** -digits;
  return share > 0 && 100 * share < least / 2 ? `<\u00a0${least}\u00a0%` : `${(100 * share).toFixed(digits)}\u00a0%`;
}

/** A number with its sign; small ones keep two digits that count. */
export function signed(value) {
  const size = Math.abs(value);
  const digits = size >= 0.1 || size === 0 ? 2 : Math.min(6, 1 - Math.floor(Math.log10(size)));
  const text = size.toFixed(digits);
  return Number(text) === 0 ? "0" : `${value < 0 ? "−" : "+"}${text}`;
}

/** A detector's score. */
export const score = (value) => value.toFixed(2).replace("-", "−");

/** "3 × 3 bins", and "13 rows × 19 columns of cells" where the order matters. */
export function grid(rows, columns, word) {
  if (rows * columns === 1) return `1 ${word}`;
  return rows === columns ? `${rows} × ${columns} ${word}s` : `${rows} rows × ${columns} columns of ${word}s`;
}

/** Width and height, as people read them, of [height, width]. */
export const pixels = ([height, width]) => `${width} × ${height} pixels`;

/** Have screen readers say a text. */
export function say(text) {
  document.getElementById("status").textContent = text;
}

/** A group of radio buttons. `options` are [value, content] pairs; `content` is text or a node. */
export function radios(legend, options, chosen, onchange, look = "chips") {
  const name = unique("choice");
  const rows = options.map(([value, content]) =>
    el(
      "label",
      {},
      el("input", {
        type: "radio",
        name,
        value: String(value),
        checked: value === chosen,
        onchange: () => onchange(value),
      }),
      el("span", {}, content),
    ),
  );
  return el("fieldset", { class: look }, el("legend", {}, legend), ...rows);
}

/** A table with a head row; cells are text or nodes. The first of each row is its head. */
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
