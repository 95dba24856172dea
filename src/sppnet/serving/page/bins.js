// A photograph overlaid with the bins of a level; their contributions are read by mouse, by keyboard or in a table.

import { el, grid, signed, table } from "./dom.js";
import { binRects, drawBox, drawLines, drawShade, drawValues, overlap } from "./overlay.js";
import { drawPicture } from "./picture.js";
import { Stage, whole } from "./stage.js";

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/**
 * @returns {node, show(level, part)}: `level` is {rows, columns, bins, word}, with `word` the name of one of its parts,
 * or null for the photograph alone; `part` is the part of the photograph that the network saw.
 */
export function binStage(photo, size) {
  let level = null;
  let seen = null;
  let rects = [];
  let current = -1;
  const stage = new Stage(whole(size), `Photograph ${photo.name}`, draw);
  const readout = el("output", { class: "readout" });
  const legend = el("div", { class: "legend" });
  const numbers = el("details", {}, el("summary", {}, "All values as a table"));
  const group = el("div", { role: "group", tabindex: "0", onkeydown: onkey, onblur: () => select(-1) }, stage.node);
  stage.canvas.addEventListener("pointermove", (event) => select(indexAt(stage.point(event))));
  stage.canvas.addEventListener("pointerleave", () => select(-1));

  function draw(view) {
    drawPicture(view.context, photo.picture, size, view.part, level ? "gray" : "color");
    if (!level) return;
    const contributions = level.bins.map(({ contribution }) => contribution);
    drawValues(view, rects, contributions, largest());
    drawLines(view, rects);
    if (seen[0] > 0 || seen[1] > 0 || seen[2] < size[1] || seen[3] < size[0]) drawShade(view, seen, 0.7);
    if (current >= 0) drawBox(view, level.bins[current].box, "#fff", 3);
  }

  const largest = () => Math.max(...level.bins.map(({ contribution }) => Math.abs(contribution))) || 1;

  function indexAt([x, y]) {
    return rects.findIndex((box) => box[0] <= x && x <= box[2] && box[1] <= y && y <= box[3]);
  }

  function select(index) {
    if (!level || index === current) return;
    current = index;
    if (index < 0) readout.textContent = hint();
    else {
      const { contribution } = level.bins[index];
      const direction = contribution > 0 ? "for the class" : contribution < 0 ? "against the class" : "neutral";
      const position = `Row ${Math.floor(index / level.columns) + 1}, column ${(index % level.columns) + 1}`;
      readout.textContent = `${position}: ${signed(contribution)}, ${direction}`;
    }
    stage.redraw();
  }

  function onkey(event) {
    if (event.key === "Escape") select(-1);
    const step = STEPS[event.key];
    if (!level || !step) return;
    event.preventDefault();
    if (current < 0) return select(0);
    const row = Math.floor(current / level.columns) + step[0];
    const column = (current % level.columns) + step[1];
    if (row >= 0 && row < level.rows && column >= 0 && column < level.columns) select(row * level.columns + column);
  }

  function hint() {
    const shared = " Neighboring bins overlap: tints end in the middle of the overlap, the outline shows the full bin.";
    return `Point at a ${level.word}, tap it or use the arrow keys to see its value.${overlap(level) ? shared : ""}`;
  }

  function show(next, part) {
    [level, seen, rects, current] = [next, part, next ? binRects(next) : [], -1];
    const suffix = level ? `, overlaid with ${grid(level.rows, level.columns, level.word)}` : "";
    stage.canvas.setAttribute("aria-label", `Photograph ${photo.name}${suffix}`);
    group.setAttribute("aria-label", level ? `Photograph and ${level.word}s` : "Photograph");
    legend.hidden = readout.hidden = numbers.hidden = !level;
    if (level) {
      legend.replaceChildren(
        el("span", {}, `against ${signed(-largest())}`),
        el("span", { class: "ramp", "aria-hidden": "true" }),
        el("span", {}, `${signed(largest())} for`),
      );
      readout.textContent = hint();
      const head = ["", ...Array.from({ length: level.columns }, (_, column) => `${column + 1}`)];
      const row = (number) => level.bins.slice(number * level.columns, (number + 1) * level.columns);
      const rows = Array.from({ length: level.rows }, (_, number) => [
        `${number + 1}`,
        ...row(number).map(({ contribution }) => signed(contribution)),
      ]);
      const caption = `Contribution of each ${level.word}, by row and column`;
      numbers.replaceChildren(numbers.firstChild, table(caption, head, rows));
    }
    stage.redraw();
  }

  return { node: el("div", { class: "figure" }, group, legend, readout, numbers), show };
}
