// Classifiers: the answer, and which parts of the photograph gave how much to it.

import { postJson } from "./api.js";
import { binStage } from "./bins.js";
import { compareSection } from "./compare.js";
import { columns, el, grid, percent, pixels, problem, radios, say, signed, soft, table } from "./dom.js";
import { pictureNote } from "./picture.js";

export const lead = () =>
  "Give it photographs. It says what they show, and which of their parts spoke for the answer and which against.";

export const ask = ({ file, stop }) => postJson("v1/predict", { image: file }, stop.signal);

export const summary = ({ label, score }) => `${label}, ${percent(score)}`;

export function show(photo, model, panel) {
  const { answer } = photo;
  const figure = binStage(photo, answer.size);
  const levels = el("div", {});
  const sums = el("div", {});
  const explained = new Map(); // a label's explanation, asked for once
  let label = answer.label;
  let chosen = null; // index of the level, or "cells" or "none"

  const seen = same(answer) ? "seen as they are" : `seen at ${pixels(answer.network_size)}`;
  panel.append(
    columns(
      [figure.node],
      el("p", { class: "answer" }, el("strong", {}, answer.label), ` ${percent(answer.score)}`),
      soft(`${pixels(answer.size)}, ${seen}${strange(answer, model)}`),
      pictureNote(photo.picture),
      radios(
        "Explain the answer",
        answer.top.map((one) => [one.label, bar(one)]),
        label,
        choose,
        "bars",
      ),
      levels,
      sums,
    ),
    compareSection(photo, model),
  );
  figure.show(null);
  choose(label);

  async function choose(next) {
    label = next;
    if (!explained.has(label)) explained.set(label, postJson("v1/explain", { image: photo.file, label: next }));
    sums.replaceChildren(soft("Asking what each part gave …"));
    let explanation;
    try {
      explanation = await explained.get(next);
    } catch (error) {
      explained.delete(next);
      if (label === next) sums.replaceChildren(problem(error));
      return;
    }
    if (label !== next) return; // another was chosen meanwhile
    const views = viewsOf(explanation);
    chosen ??= bestView(explanation);
    levels.replaceChildren(radios("Over the photograph", names(views), chosen, look));
    look(chosen);
    sums.replaceChildren(...sumsOf(explanation));
    say(`What the parts gave to the logit of ${label} is drawn over the photograph and in the tables.`);

    function look(view) {
      chosen = view;
      figure.show(views.get(view), explanation.seen);
    }
  }
}

const same = ({ size, network_size: seen }) => size[0] === seen[0] && size[1] === seen[1];

/** What is said of a photograph that the network saw smaller or larger than all that it was trained on. */
function strange({ network_size: seen }, { trained_sides: sides }) {
  const side = Math.min(...seen);
  if (!sides || (side >= sides[0] && side <= sides[1])) return "";
  return `; the network was trained on photographs whose shorter side had ${sides.join(" to ")} pixels`;
}

/** What can be laid over the photograph: each level, the cells, nothing. */
function viewsOf({ levels, cells }) {
  const views = new Map(levels.map((level, index) => [index, { ...level, word: "bin" }]));
  const boxes = cells.values.map((contribution, index) => {
    const [row, column] = [Math.floor(index / cells.columns), index % cells.columns];
    return { contribution, box: [cells.x[column], cells.y[row], cells.x[column + 1], cells.y[row + 1]] };
  });
  views.set("cells", { rows: cells.rows, columns: cells.columns, bins: boxes, word: "cell" });
  return views.set("none", null);
}

const names = (views) =>
  [...views].map(([key, view]) => [key, view ? grid(view.rows, view.columns, view.word) : "photograph only"]);

/** The finest level; the cells where the pyramid is one bin, which has no parts to tell apart. */
function bestView({ levels }) {
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
  rows.push([exact ? "bias, whatever is seen" : "left over", signed(rest)], ["logit", signed(logit)]);
  const text = exact
    ? "The bins and the bias add up to the logit exactly."
    : "This network's last layers are not a sum over bins: each number is gradient times value, an approximation.";
  const below = logit < 0 ? " That a logit is below 0 means little: those of the other classes may be lower." : "";
  const last = `Of the logits of all classes softmax makes the probabilities; here ${percent(score)}.${below}`;
  return [table(`The logit of “${label}”`, ["part", "contribution"], rows), soft(`${text} ${last}`)];
}
