// Classifiers: the prediction, and the contributions of the parts of the photograph to it.

import { postJson } from "./api.js";
import { binStage } from "./bins.js";
import { compareSection } from "./compare.js";
import { announce, columns, el, errorMessage, grid, muted, percent, pixels, radios, signed, table } from "./dom.js";
import { pictureNote } from "./picture.js";

export const lead = () =>
  "Add photographs to classify them and see which of their parts count for the prediction, and which against it.";

export const ask = ({ file, stop }) => postJson("v1/predict", { image: file }, stop.signal);

export const summary = ({ label, score }) => `${label}, ${percent(score)}`;

export function show(photo, model, panel) {
  const { answer } = photo;
  const figure = binStage(photo, answer.size);
  const levels = el("div", {});
  const sums = el("div", {});
  const explanations = new Map(); // promises of explanations, by label
  let label = answer.label;
  let overlay = null; // index of a level, "cells" or "none"

  const input = sameSize(answer) ? "not resized" : `network input ${pixels(answer.network_size)}`;
  panel.append(
    columns(
      [figure.node],
      el("p", { class: "answer" }, el("strong", {}, answer.label), ` ${percent(answer.score)}`),
      muted(`${pixels(answer.size)}, ${input}${sizeWarning(answer, model)}`),
      pictureNote(photo.picture),
      radios(
        "Class to explain",
        answer.top.map((prediction) => [prediction.label, bar(prediction)]),
        label,
        explain,
        "bars",
      ),
      levels,
      sums,
    ),
    compareSection(photo, model),
  );
  figure.show(null);
  explain(label);

  async function explain(next) {
    label = next;
    if (!explanations.has(label)) explanations.set(label, postJson("v1/explain", { image: photo.file, label: next }));
    sums.replaceChildren(muted("Loading the contributions …"));
    let explanation;
    try {
      explanation = await explanations.get(next);
    } catch (error) {
      explanations.delete(next);
      if (label === next) sums.replaceChildren(errorMessage(error));
      return;
    }
    if (label !== next) return; // another class has been selected meanwhile
    const views = viewsOf(explanation);
    overlay ??= defaultView(explanation);
    levels.replaceChildren(radios("Overlay", names(views), overlay, select));
    select(overlay);
    sums.replaceChildren(...sumsOf(explanation));
    announce(`Contributions to the logit of ${label} are shown over the photograph and in the tables.`);

    function select(view) {
      overlay = view;
      figure.show(views.get(view), explanation.seen);
    }
  }
}

const sameSize = ({ size, network_size: input }) => size[0] === input[0] && size[1] === input[1];

/** A note if the network input is smaller or larger than all training images. */
function sizeWarning({ network_size: input }, { trained_sides: sides }) {
  const side = Math.min(...input);
  if (!sides || (side >= 0.9 * sides[0] && side <= 1.1 * sides[1])) return ""; // the tolerance of `predict`
  return `; the network was trained on photographs with a shorter side of ${sides.join(" to ")} pixels`;
}

/** The possible overlays: each level, the cells, none. */
function viewsOf({ levels, cells }) {
  const views = new Map(levels.map((level, index) => [index, { ...level, word: "bin" }]));
  const bins = cells.values.map((contribution, index) => {
    const [row, column] = [Math.floor(index / cells.columns), index % cells.columns];
    return { contribution, box: [cells.x[column], cells.y[row], cells.x[column + 1], cells.y[row + 1]] };
  });
  views.set("cells", { rows: cells.rows, columns: cells.columns, bins, word: "cell" });
  return views.set("none", null);
}

const names = (views) =>
  [...views].map(([key, view]) => [key, view ? grid(view.rows, view.columns, view.word) : "photograph only"]);

/** The finest level, or the cells if the pyramid is a single bin. */
function defaultView({ levels }) {
  const finest = levels.reduce(
    (best, level, index) => (level.bins.length > levels[best].bins.length ? index : best),
    0,
  );
  return levels[finest].bins.length > 1 ? finest : "cells";
}

function bar({ label, score }) {
  const fill = el("i", {});
  fill.style.width = `${100 * score}%`;
  return el("span", { class: "bar" }, el("b", {}, label), el("span", {}, percent(score)), fill);
}

function sumsOf({ label, score, logit, rest, exact, levels }) {
  const total = ({ bins }) => bins.reduce((sum, { contribution }) => sum + contribution, 0);
  const rows = levels.map((level) => [grid(level.rows, level.columns, "bin"), signed(total(level))]);
  rows.push([exact ? "bias" : "remainder", signed(rest)], ["logit", signed(logit)]);
  const text = exact
    ? "The bins and the bias add up to the logit exactly."
    : "The head of this network is not linear in the bins: contributions are gradient × input, an approximation.";
  const note = logit < 0 ? " A negative logit does not make the class unlikely: other logits may be lower." : "";
  const last = `Softmax over the logits of all classes gives the probability, here ${percent(score)}.${note}`;
  return [table(`Logit of “${label}”`, ["part", "contribution"], rows), muted(`${text} ${last}`)];
}
