// Region encoders: a box that is drawn with the mouse or typed, its cells and bins, and its vector as a file.

import { post, postJson } from "./api.js";
import { columns, el, pixels, soft } from "./dom.js";
import { drawBox } from "./overlay.js";
import { drawPicture, pictureNote } from "./picture.js";
import { pooledCells } from "./pooled.js";
import { Stage, whole } from "./stage.js";

const COLOUR = "#ffd640";
const EVERYTHING = "[0, 0, 1e6, 1e6]"; // a box that reaches so far is that of the whole photograph

export const lead = () =>
  "Give it photographs and draw a box. It shows the cells and bins that the box pools, and gives its vector as a file.";

/** The photograph as one box: what is asked of an encoder before a box is drawn, and how its size is learnt. */
export const ask = ({ file, stop }) => postJson("v1/explain", { image: file, box: EVERYTHING }, stop.signal);

export const summary = ({ size }) => pixels(size);

export function show(photo, model, panel) {
  const [height, width] = photo.answer.size;
  let box = [width / 4, height / 4, (3 * width) / 4, (3 * height) / 4].map(Math.round);
  if (box[0] >= box[2] || box[1] >= box[3]) box = [0, 0, width, height];
  let start = null;

  const stage = new Stage(whole([height, width]), `The photograph ${photo.name} with the box`, draw);
  const cells = pooledCells(photo, () => stage.redraw());
  const names = ["Left", "Top", "Right", "Bottom"];
  const inputs = names.map((_, side) =>
    el("input", { type: "number", step: "any", required: true, value: box[side], onchange: typed }),
  );
  const edges = names.map((name, side) => el("label", {}, name, inputs[side]));
  const wrong = el("p", { class: "error", role: "alert", hidden: true });
  const button = el("button", { type: "button", onclick: download }, "Download the vector (safetensors)");

  stage.canvas.classList.add("drawable");
  stage.canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    start = stage.point(event);
    stage.canvas.setPointerCapture(event.pointerId);
  });
  stage.canvas.addEventListener("pointermove", (event) => start && put(between(start, stage.point(event))));
  stage.canvas.addEventListener("pointerup", () => {
    if (start) cells.ask(box, COLOUR);
    start = null;
  });
  stage.canvas.addEventListener("pointercancel", () => (start = null));

  panel.append(
    columns(
      [stage.node],
      soft(`${pixels([height, width])}. Draw a box over the photograph, or type its edges.`),
      pictureNote(photo.picture),
      el("fieldset", { class: "edges" }, el("legend", {}, "Edges of the box, in pixels"), ...edges),
      wrong,
      cells.node,
      button,
    ),
  );
  cells.ask(box, COLOUR);

  /** A box of at least a pixel between two corners. */
  function between([x1, y1], [x2, y2]) {
    const first = (a, b, side) => Math.floor(Math.min(a, b, side - 1));
    const last = (a, b, begin) => Math.max(begin + 1, Math.round(Math.max(a, b)));
    const [left, top] = [first(x1, x2, width), first(y1, y2, height)];
    return [left, top, last(x1, x2, left), last(y1, y2, top)];
  }

  function put(next) {
    box = next;
    for (const [side, input] of inputs.entries()) input.value = box[side];
    cells.ask(null);
    stage.redraw();
  }

  function typed() {
    const next = inputs.map((input) => input.valueAsNumber);
    wrong.hidden = next[0] < next[2] && next[1] < next[3];
    wrong.textContent = wrong.hidden ? "" : "Left has to be less than right, and top less than bottom.";
    if (!wrong.hidden) return;
    box = next;
    cells.ask(box, COLOUR);
    stage.redraw();
  }

  async function download() {
    button.disabled = true;
    try {
      const fields = { image: photo.file, boxes: JSON.stringify([box]), output: "safetensors" };
      const response = await post("v1/features", fields);
      const url = URL.createObjectURL(await response.blob());
      el("a", { href: url, download: `${photo.name}.safetensors` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10_000);
      wrong.hidden = true;
    } catch (error) {
      [wrong.textContent, wrong.hidden] = [error.message, false];
    } finally {
      button.disabled = false;
    }
  }

  function draw(view) {
    drawPicture(view.context, photo.picture, [height, width], view.part, cells.found() ? "grey" : "colour");
    cells.draw(view);
    drawBox(view, box, COLOUR);
  }
}
