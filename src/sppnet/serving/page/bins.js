// A photograph with the bins of a level over it: what each gave, by the mouse, by the keys and in a table.

import { el, grid, signed, table } from "./dom.js";
import { drawBox, drawLines, drawShade, drawValues, fields, overlap } from "./overlay.js";
import { drawPicture } from "./picture.js";
import { Stage, whole } from "./stage.js";

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/**
 * @returns {node, show(level, seen)}; a level is {rows, columns, bins, word}, `word` what one of them is called;
 * null for the photograph alone.
 */
export function binStage(photo, size) {
  let level = null;
  let seen = null;
  let places = [];
  let current = -1;
  const stage = new Stage(whole(size), `The photograph ${photo.name}`, draw);
  const readout = el("output", { class: "readout" });
  const legend = el("div", { class: "legend" });
  const numbers = el("details", {}, el("summary", {}, "All numbers as a table"));
  const group = el("div", { role: "group", tabindex: "0", onkeydown: onkey, onblur: () => point(-1) }, stage.node);
  stage.canvas.addEventListener("pointermove", (event) => point(at(stage.point(event))));
  stage.canvas.addEventListener("pointerleave", () => point(-1));

  function draw(view) {
    drawPicture(view.context, photo.picture, size, view.part, level ? "grey" : "colour");
    if (!level) return;
    drawValues(
      view,
      places,
      level.bins.map(({ contribution }) => contribution),
      most(),
    );
    drawLines(view, places);
    if (seen[0] > 0 || seen[1] > 0 || seen[2] < size[1] || seen[3] < size[0]) drawShade(view, seen, 0.7);
    if (current >= 0) drawBox(view, level.bins[current].box, "#fff", 3);
  }

  const most = () => Math.max(...level.bins.map(({ contribution }) => Math.abs(contribution))) || 1;

  function at([x, y]) {
    return places.findIndex((box) => box[0] <= x && x <= box[2] && box[1] <= y && y <= box[3]);
  }

  function point(index) {
    if (!level || index === current) return;
    current = index;
    if (index < 0) readout.textContent = hint();
    else {
      const { contribution } = level.bins[index];
      const verb = contribution > 0 ? "helped" : contribution < 0 ? "spoke against" : "said nothing";
      const place = `Row ${Math.floor(index / level.columns) + 1}, column ${(index % level.columns) + 1}`;
      readout.textContent = `${place}: ${signed(contribution)}, ${verb}`;
    }
    stage.redraw();
  }

  function onkey(event) {
    if (event.key === "Escape") point(-1);
    const step = STEPS[event.key];
    if (!level || !step) return;
    event.preventDefault();
    if (current < 0) return point(0);
    const row = Math.floor(current / level.columns) + step[0];
    const column = (current % level.columns) + step[1];
    if (row >= 0 && row < level.rows && column >= 0 && column < level.columns) point(row * level.columns + column);
  }

  function hint() {
    const shared = " Neighbouring bins overlap: each is coloured to the middle of the overlap, and outlined whole when pointed at.";
    return `Point at a ${level.word}, tap it or use the arrow keys for its number.${overlap(level) ? shared : ""}`;
  }

  function show(next, part) {
    [level, seen, places, current] = [next, part, next ? fields(next) : [], -1];
    const what = level ? `, with ${grid(level.rows, level.columns, level.word)} over it` : "";
    stage.canvas.setAttribute("aria-label", `The photograph ${photo.name}${what}`);
    group.setAttribute("aria-label", level ? `Photograph and ${level.word}s` : "Photograph");
    legend.hidden = readout.hidden = numbers.hidden = !level;
    if (level) {
      legend.replaceChildren(
        el("span", {}, `against ${signed(-most())}`),
        el("span", { class: "ramp", "aria-hidden": "true" }),
        el("span", {}, `${signed(most())} for it`),
      );
      readout.textContent = hint();
      const head = ["", ...Array.from({ length: level.columns }, (_, column) => `${column + 1}`)];
      const row = (number) => level.bins.slice(number * level.columns, (number + 1) * level.columns);
      const rows = Array.from({ length: level.rows }, (_, number) => [
        `${number + 1}`,
        ...row(number).map(({ contribution }) => signed(contribution)),
      ]);
      numbers.replaceChildren(numbers.firstChild, table(`What each ${level.word} gave, by row and column`, head, rows));
    }
    stage.redraw();
  }

  return { node: el("div", { class: "figure" }, group, legend, readout, numbers), show };
}
