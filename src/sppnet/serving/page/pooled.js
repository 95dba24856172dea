// The feature map cells that a box pools and the bins over them, for detectors and region encoders.

import { postJson } from "./api.js";
import { announce, el, errorMessage, grid, muted, pixels, radios, table } from "./dom.js";
import { binRects, cellRects, drawBox, drawCheckerboard, drawLines, drawShade, overlap } from "./overlay.js";
import { drawPicture } from "./picture.js";
import { Stage } from "./stage.js";

const MARGIN = 0.15; // around the box in the close-up, as a share of its longer side

/**
 * @returns {node: controls, text and close-up, ask(box, color): request the cells of a box, or clear them for null,
 * draw(view), isShown(): whether a response is drawn}; `onChange` is called when the photograph must be redrawn.
 */
export function pooledCells(photo, onChange) {
  const node = el("div", {});
  const closeUp = new Stage([0, 0, 1, 1], "Close-up of the box with its cells and bins", drawCloseUp, 40);
  let explanation = null;
  let view = 0; // index of a level, or "cells"
  let latest = null; // latest request

  async function ask(box, color) {
    const request = (latest = { box, color });
    explanation = null;
    if (!box) return node.replaceChildren();
    const showLoading = () => latest === request && node.replaceChildren(muted("Loading its cells …"));
    const timer = setTimeout(showLoading, 300);
    try {
      const answer = await postJson("v1/explain", { image: photo.file, box: JSON.stringify(box) });
      if (latest === request) show(answer);
    } catch (error) {
      if (latest === request) node.replaceChildren(errorMessage(error));
    } finally {
      clearTimeout(timer);
    }
  }

  function show(answer) {
    explanation = answer;
    const [left, top, right, bottom] = answer.cells;
    const [pooled, all] = [grid(bottom - top, right - left, "cell"), grid(...answer.map_size, "cell")];
    const input = pixels(answer.network_size);
    const text = `The box pools ${pooled} into one vector. The feature map, for an input of ${input}, has ${all}.`;
    const levels = answer.levels.map((level, index) => [index, grid(level.rows, level.columns, "bin")]);
    const options = [...levels, ["cells", "cells only"]];
    const numbers = el("details", {}, el("summary", {}, "All bins as a table"));
    const shared = muted("Neighboring bins overlap; each is drawn up to the middle of the overlap.");
    const choice = radios("Inside the box", options, view, select);
    node.replaceChildren(el("p", { class: "pooled" }, text), choice, closeUp.node, shared, numbers);
    closeUp.show(around(latest.box, answer));
    select(view);
    announce(text);

    function select(next) {
      view = next;
      const level = explanation.levels[view];
      numbers.hidden = !level;
      shared.hidden = !level || !overlap(level);
      if (level) numbers.replaceChildren(numbers.firstChild, binTable(level));
      closeUp.redraw();
      onChange();
    }
  }

  function draw(target) {
    if (!explanation) return;
    const [left, top, right, bottom] = explanation.cells;
    const xs = explanation.x.slice(Math.max(left, 0), Math.max(right, 0) + 1);
    const ys = explanation.y.slice(Math.max(top, 0), Math.max(bottom, 0) + 1);
    if (xs.length < 2 || ys.length < 2) return; // the rule roi_pool allows windows outside the map
    drawShade(target, [xs[0], ys[0], xs.at(-1), ys.at(-1)], 0.55);
    const level = explanation.levels[view];
    if (level) drawCheckerboard(target, binRects(level), level.columns);
    drawLines(target, cellRects(xs, ys));
  }

  function drawCloseUp(target) {
    if (!explanation) return;
    drawPicture(target.context, photo.picture, explanation.size, target.part, "gray");
    draw(target);
    drawBox(target, latest.box, latest.color);
  }

  return { node, ask, draw, isShown: () => explanation !== null };
}

/** The area of a box and its cells with a margin, clipped to the photograph. */
function around(box, { cells: [left, top, right, bottom], x, y, size: [height, width] }) {
  const at = (edges, index) => edges[Math.min(Math.max(index, 0), edges.length - 1)];
  const margin = MARGIN * Math.max(box[2] - box[0], box[3] - box[1]);
  return [
    Math.max(0, Math.min(box[0], at(x, left)) - margin),
    Math.max(0, Math.min(box[1], at(y, top)) - margin),
    Math.min(width, Math.max(box[2], at(x, right)) + margin),
    Math.min(height, Math.max(box[3], at(y, bottom)) + margin),
  ];
}

function binTable({ columns, bins }) {
  const head = ["row, column", "left", "top", "right", "bottom"];
  const position = (index) => `${Math.floor(index / columns) + 1}, ${(index % columns) + 1}`;
  const rows = bins.map(({ box }, index) => [position(index), ...box.map((edge) => edge.toFixed(0))]);
  return table("The bins, in pixels of the photograph", head, rows);
}
