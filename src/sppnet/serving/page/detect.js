// Detectors: the objects above a threshold, and the feature map cells that the selected box pools.

import { postJson } from "./api.js";
import { columns, el, muted, pixels, score, slider } from "./dom.js";
import { classColor, drawBox, drawName } from "./overlay.js";
import { drawPicture, pictureNote } from "./picture.js";
import { pooledCells } from "./pooled.js";
import { Stage, whole } from "./stage.js";

const MAX_NAMED = 40; // with more boxes than this, names would hide the photograph

export const lead = () =>
  "Add photographs to find objects in them. Select an object to see which cells of the feature map its box pools.";

/** Request all objects down to the lowest score of the slider. */
export const ask = ({ file, stop }, model) =>
  postJson("v1/predict", { image: file, min_score: model.score_range[0] }, stop.signal);

export function summary({ objects }, model) {
  return countText(objects.filter(({ score }) => score >= model.shown_score).length);
}

const countText = (count) => `${count} object${count === 1 ? "" : "s"}`;

export function show(photo, model, panel) {
  const { answer } = photo;
  const colors = new Map(model.classes.map((name, index) => [name, classColor(index)]));
  let threshold = model.shown_score;
  let shown = [];
  let selected = null;

  const stage = new Stage(whole(answer.size), `Photograph ${photo.name} with the boxes of its objects`, draw);
  const cells = pooledCells(photo, () => stage.redraw());
  const [lowest, highest] = model.score_range;
  const minimum = el("output");
  const slide = slider("Minimum score", minimum, { min: lowest, max: highest, step: "0.01", value: threshold }, filter);
  const count = el("p", { class: "answer", role: "status" });
  const list = el("ul", { class: "objects", "aria-label": "Objects, best first" });
  stage.canvas.addEventListener("click", (event) => select(objectAt(stage.point(event)) ?? null));

  panel.append(
    columns(
      [stage.node],
      count,
      muted(pixels(answer.size)),
      pictureNote(photo.picture),
      slide.node,
      list,
      cells.node,
    ),
  );
  filter();

  function filter() {
    threshold = Number(slide.input.value);
    minimum.textContent = score(threshold);
    shown = answer.objects.filter(({ score }) => score >= threshold);
    count.replaceChildren(el("strong", {}, countText(shown.length)), ` of ${answer.objects.length} found`);
    list.replaceChildren(...shown.map(item));
    if (selected && !shown.includes(selected)) select(null);
    else stage.redraw();
  }

  function item(object) {
    const swatch = el("i", { class: "swatch", "aria-hidden": "true" });
    swatch.style.background = colors.get(object.label);
    const onclick = () => select(object === selected ? null : object);
    const pressed = String(object === selected);
    return el(
      "li",
      {},
      el(
        "button",
        { type: "button", "aria-pressed": pressed, onclick },
        swatch,
        object.label,
        " ",
        el("small", {}, score(object.score)),
      ),
    );
  }

  function select(object) {
    selected = object;
    for (const [index, { firstChild }] of [...list.children].entries()) {
      firstChild.setAttribute("aria-pressed", String(shown[index] === object));
    }
    cells.ask(object?.box ?? null, colors.get(object?.label));
    stage.redraw();
  }

  /** The object with the smallest box at a point. */
  function objectAt([x, y]) {
    const area = ({ box }) => (box[2] - box[0]) * (box[3] - box[1]);
    const hit = shown.filter(({ box }) => box[0] <= x && x <= box[2] && box[1] <= y && y <= box[3]);
    return hit.sort((a, b) => area(a) - area(b))[0];
  }

  function draw(view) {
    drawPicture(view.context, photo.picture, answer.size, view.part, selected ? "gray" : "color");
    if (selected) {
      cells.draw(view);
      drawBox(view, selected.box, colors.get(selected.label), 3);
      return;
    }
    const ascending = shown.toReversed(); // draw the best on top
    for (const { box, label } of ascending) drawBox(view, box, colors.get(label));
    if (shown.length > MAX_NAMED) return;
    for (const object of ascending) {
      drawName(view, object.box, `${object.label} ${score(object.score)}`, colors.get(object.label));
    }
  }
}
