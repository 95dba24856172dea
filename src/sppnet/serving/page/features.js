// Region encoders: a box, drawn or typed, with its cells and bins, and its vector as a download.

import { post, postJson } from "./api.js";
import { columns, el, muted, pixels } from "./dom.js";
import { drawBox } from "./overlay.js";
import { drawPicture, pictureNote } from "./picture.js";
import { pooledCells } from "./pooled.js";
import { Stage, whole } from "./stage.js";

const COLOR = "#ffd640";
const EVERYTHING = "[0, 0, 1e6, 1e6]"; // clipped by the server to the whole photograph

export const lead = () =>
  "Add photographs and draw a box to see which cells and bins it pools, and to download its feature vector.";

/** Request the photograph as one box, for its size and to validate the file before a box is drawn. */
export const ask = ({ file, stop }) => postJson("v1/explain", { image: file, box: EVERYTHING }, stop.signal);

export const summary = ({ size }) => pixels(size);

export function show(photo, model, panel) {
  const [height, width] = photo.answer.size;
  let box = [width / 4, height / 4, (3 * width) / 4, (3 * height) / 4].map(Math.round);
  if (box[0] >= box[2] || box[1] >= box[3]) box = [0, 0, width, height];
  let start = null;

  const stage = new Stage(whole([height, width]), `Photograph ${photo.name} with the box`, draw);
  const cells = pooledCells(photo, () => stage.redraw());
  const names = ["Left", "Top", "Right", "Bottom"];
  const inputs = names.map((_, side) =>
    el("input", { type: "number", step: "any", required: true, value: box[side], onchange: readInputs }),
  );
  const edges = names.map((name, side) => el("label", {}, name, inputs[side]));
  const error = el("p", { class: "error", role: "alert", hidden: true });
  const button = el("button", { type: "button", onclick: download }, "Download the vector (safetensors)");

  stage.canvas.classList.add("drawable");
  stage.canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    start = stage.point(event);
    stage.canvas.setPointerCapture(event.pointerId);
  });
  stage.canvas.addEventListener("pointermove", (event) => start && setBox(boxBetween(start, stage.point(event))));
  stage.canvas.addEventListener("pointerup", () => {
    if (start) cells.ask(box, COLOR);
    start = null;
  });
  stage.canvas.addEventListener("pointercancel", () => (start = null));

  panel.append(
    columns(
      [stage.node],
      muted(`${pixels([height, width])}. Draw a box over the photograph, or type its edges.`),
      pictureNote(photo.picture),
      el("fieldset", { class: "edges" }, el("legend", {}, "Edges of the box, in pixels"), ...edges),
      error,
      cells.node,
      button,
    ),
  );
  cells.ask(box, COLOR);

  /** The box between two corners, at least one pixel wide and high. */
  function boxBetween([x1, y1], [x2, y2]) {
    const first = (a, b, side) => Math.floor(Math.min(a, b, side - 1));
    const last = (a, b, edge) => Math.max(edge + 1, Math.round(Math.max(a, b)));
    const [left, top] = [first(x1, x2, width), first(y1, y2, height)];
    return [left, top, last(x1, x2, left), last(y1, y2, top)];
  }

  function setBox(next) {
    box = next;
    for (const [side, input] of inputs.entries()) input.value = box[side];
    cells.ask(null);
    stage.redraw();
  }

  function readInputs() {
    const next = inputs.map((input) => input.valueAsNumber);
    error.hidden = next[0] < next[2] && next[1] < next[3];
    error.textContent = error.hidden ? "" : "Left must be less than right, and top less than bottom.";
    if (!error.hidden) return;
    box = next;
    cells.ask(box, COLOR);
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
      error.hidden = true;
    } catch ({ message }) {
      [error.textContent, error.hidden] = [message, false];
    } finally {
      button.disabled = false;
    }
  }

  function draw(view) {
    drawPicture(view.context, photo.picture, [height, width], view.part, cells.isShown() ? "gray" : "color");
    cells.draw(view);
    drawBox(view, box, COLOR);
  }
}
