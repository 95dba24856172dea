// Detectors: the objects above a threshold, and the cells that each one's box pools.

import { postJson } from "./api.js";
import { columns, el, pixels, score, slider, soft } from "./dom.js";
import { classColour, drawBox, drawName } from "./overlay.js";
import { drawPicture, pictureNote } from "./picture.js";
import { pooledCells } from "./pooled.js";
import { Stage, whole } from "./stage.js";

const MOST_NAMES = 40; // boxes, above which their names would hide the photograph

export const lead = () =>
  "Give it photographs. It finds objects in them; choose one and see which cells of the network's map its box pools.";

/** Everything down to the slider's end. */
export const ask = ({ file, stop }, model) =>
  postJson("v1/predict", { image: file, min_score: model.score_range[0] }, stop.signal);

export function summary({ objects }, model) {
  return countText(objects.filter(({ score }) => score >= model.shown_score).length);
}

const countText = (count) => `${count} object${count === 1 ? "" : "s"}`;

export function show(photo, model, panel) {
  const { answer } = photo;
  const colours = new Map(model.classes.map((name, index) => [name, classColour(index)]));
  let threshold = model.shown_score;
  let shown = [];
  let chosen = null;

  const stage = new Stage(whole(answer.size), `The photograph ${photo.name} with the boxes of its objects`, draw);
  const cells = pooledCells(photo, () => stage.redraw());
  const [lowest, highest] = model.score_range;
  const least = el("output");
  const slide = slider("Minimum score", least, { min: lowest, max: highest, step: "0.01", value: threshold }, sift);
  const count = el("p", { class: "answer", role: "status" });
  const list = el("ul", { class: "objects", "aria-label": "Objects, best first" });
  stage.canvas.addEventListener("click", (event) => choose(under(stage.point(event)) ?? null));

  panel.append(
    columns(
      [stage.node],
      count,
      soft(`${pixels(answer.size)}, ${answer.windows.toLocaleString("en")} windows looked at`),
      pictureNote(photo.picture),
      slide.node,
      list,
      cells.node,
    ),
  );
  sift();

  function sift() {
    threshold = Number(slide.input.value);
    least.textContent = score(threshold);
    shown = answer.objects.filter(({ score }) => score >= threshold);
    count.replaceChildren(el("strong", {}, countText(shown.length)), ` of ${answer.objects.length} that were found`);
    list.replaceChildren(...shown.map(item));
    if (chosen && !shown.includes(chosen)) choose(null);
    else stage.redraw();
  }

  function item(object) {
    const swatch = el("i", { class: "swatch", "aria-hidden": "true" });
    swatch.style.background = colours.get(object.label);
    const onclick = () => choose(object === chosen ? null : object);
    const pressed = String(object === chosen);
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

  function choose(object) {
    chosen = object;
    for (const [index, { firstChild }] of [...list.children].entries()) {
      firstChild.setAttribute("aria-pressed", String(shown[index] === object));
    }
    cells.ask(object?.box ?? null, colours.get(object?.label));
    stage.redraw();
  }

  /** The smallest box at a place. */
  function under([x, y]) {
    const area = ({ box }) => (box[2] - box[0]) * (box[3] - box[1]);
    const hit = shown.filter(({ box }) => box[0] <= x && x <= box[2] && box[1] <= y && y <= box[3]);
    return hit.sort((a, b) => area(a) - area(b))[0];
  }

  function draw(view) {
    drawPicture(view.context, photo.picture, answer.size, view.part, chosen ? "grey" : "colour");
    if (chosen) {
      cells.draw(view);
      drawBox(view, chosen.box, colours.get(chosen.label), 3);
      return;
    }
    const upwards = shown.toReversed(); // the best on top
    for (const { box, label } of upwards) drawBox(view, box, colours.get(label));
    if (shown.length > MOST_NAMES) return;
    for (const one of upwards) drawName(view, one.box, `${one.label} ${score(one.score)}`, colours.get(one.label));
  }
}
