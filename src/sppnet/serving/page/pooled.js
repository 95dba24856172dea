// The cells of the map that a box pools, and the bins of a level over them: of detectors and of region encoders.

import { postJson } from "./api.js";
import { el, grid, pixels, problem, radios, say, soft, table } from "./dom.js";
import { between, drawBox, drawChessboard, drawLines, drawShade, fields, overlap } from "./overlay.js";
import { drawPicture } from "./picture.js";
import { Stage } from "./stage.js";

const ROOM = 0.15; // around the box in the near view, as a share of its longer side

/**
 * @returns {node: controls, text and a near view, ask(box, colour): what a box pools, or nothing for null, draw(view),
 * found(): the answer or null}; `changed` is called when there is something new to draw.
 */
export function pooledCells(photo, changed) {
  const node = el("div", {});
  const near = new Stage([0, 0, 1, 1], "The box from near, with its cells and bins", drawNear, 40);
  let found = null;
  let chosen = 0;
  let asked = null;

  async function ask(box, colour) {
    const mine = (asked = { box, colour });
    found = null;
    if (!box) return node.replaceChildren();
    const waiting = setTimeout(() => asked === mine && node.replaceChildren(soft("Asking for its cells …")), 300);
    try {
      const answer = await postJson("v1/explain", { image: photo.file, box: JSON.stringify(box) });
      if (asked === mine) tell(answer);
    } catch (error) {
      if (asked === mine) node.replaceChildren(problem(error));
    } finally {
      clearTimeout(waiting);
    }
  }

  function tell(answer) {
    found = answer;
    const [left, top, right, bottom] = answer.cells;
    const [mine, all] = [grid(bottom - top, right - left, "cell"), grid(...answer.map_size, "cell")];
    const seen = pixels(answer.network_size);
    const text = `The box pools ${mine} into one vector. The map, made of the photograph at ${seen}, has ${all}.`;
    const levels = answer.levels.map((level, index) => [index, grid(level.rows, level.columns, "bin")]);
    const options = [...levels, ["cells", "cells only"]];
    const numbers = el("details", {}, el("summary", {}, "All bins as a table"));
    const shared = soft("Neighbouring bins overlap; each is drawn to the middle of the overlap.");
    const choice = radios("Inside the box", options, chosen, look);
    node.replaceChildren(el("p", { class: "pooled" }, text), choice, near.node, shared, numbers);
    near.show(around(asked.box, answer));
    look(chosen);
    say(text);

    function look(next) {
      chosen = next;
      const level = found.levels[chosen];
      numbers.hidden = !level;
      shared.hidden = !level || !overlap(level);
      if (level) numbers.replaceChildren(numbers.firstChild, binTable(level));
      near.redraw();
      changed();
    }
  }

  function draw(view) {
    if (!found) return;
    const [left, top, right, bottom] = found.cells;
    const xs = found.x.slice(Math.max(left, 0), Math.max(right, 0) + 1);
    const ys = found.y.slice(Math.max(top, 0), Math.max(bottom, 0) + 1);
    if (xs.length < 2 || ys.length < 2) return; // the rule roi_pool may take cells outside the map
    drawShade(view, [xs[0], ys[0], xs.at(-1), ys.at(-1)], 0.55);
    const level = found.levels[chosen];
    if (level) drawChessboard(view, fields(level), level.columns);
    drawLines(view, between(xs, ys));
  }

  function drawNear(view) {
    if (!found) return;
    drawPicture(view.context, photo.picture, found.size, view.part, "grey");
    draw(view);
    drawBox(view, asked.box, asked.colour);
  }

  return { node, ask, draw, found: () => found };
}

/** A box and its cells with some room, inside the photograph. */
function around(box, { cells: [left, top, right, bottom], x, y, size: [height, width] }) {
  const at = (edges, place) => edges[Math.min(Math.max(place, 0), edges.length - 1)];
  const room = ROOM * Math.max(box[2] - box[0], box[3] - box[1]);
  return [
    Math.max(0, Math.min(box[0], at(x, left)) - room),
    Math.max(0, Math.min(box[1], at(y, top)) - room),
    Math.min(width, Math.max(box[2], at(x, right)) + room),
    Math.min(height, Math.max(box[3], at(y, bottom)) + room),
  ];
}

function binTable({ columns, bins }) {
  const head = ["row, column", "left", "top", "right", "bottom"];
  const place = (index) => `${Math.floor(index / columns) + 1}, ${(index % columns) + 1}`;
  const rows = bins.map(({ box }, index) => [place(index), ...box.map((edge) => edge.toFixed(0))]);
  return table("The bins, in pixels of the photograph", head, rows);
}
