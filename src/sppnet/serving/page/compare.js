// The same photograph at its own size, warped, and cropped, side by side: what the network saw, and its answers.

import { postJson } from "./api.js";
import { el, percent, pixels, problem, say, soft } from "./dom.js";
import { canvas, drawPicture } from "./picture.js";

const LONGEST = 640; // side of the drawings, pixels
const TITLE = "Compare native, warp and crop side by side";
const WORDS = {
  native: "its own size",
  "shorter-side": "shorter side fixed",
  "square-min": "squeezed into a square",
  warp: "squeezed into a square",
  "center-crop": "cut out of the middle",
};

/** A button, and three columns when it is pressed. */
export function compareSection(photo, model) {
  const button = el("button", { type: "button", class: "plain", onclick: run }, TITLE);
  const section = el("section", { "aria-label": "Comparison of sizes" }, button);
  return section;

  function run() {
    const heading = el("h3", { tabindex: "-1" }, "The same photograph at other sizes");
    const columns = policies(model).map((policy) => column(photo, policy));
    section.replaceChildren(heading, el("div", { class: "compare" }, ...columns));
    heading.focus();
  }
}

/** The model's own policy, or native where that is one of the others; a warp; a crop. */
function policies({ resize, resizes }) {
  const first = (kind) => resizes.find((name) => name.startsWith(kind));
  const others = [first("warp:"), first("center-crop:")].filter(Boolean);
  return [others.includes(resize) ? "native" : resize, ...others];
}

function column(photo, policy) {
  const body = el("div", {}, soft("Waiting …"));
  fill(photo, policy, body);
  const words = el("small", {}, WORDS[policy.split(":")[0]]);
  return el("section", { "aria-label": policy }, el("h4", {}, policy, " ", words), body);
}

async function fill(photo, policy, body) {
  const fields = { image: photo.file, resize: policy };
  try {
    const [answer, { seen }] = await Promise.all([postJson("v1/predict", fields), postJson("v1/explain", fields)]);
    const share = ((seen[2] - seen[0]) * (seen[3] - seen[1])) / (answer.size[0] * answer.size[1]);
    const lost = share < 0.995 ? `; ${percent(1 - share, 0)} of the photograph is cut off` : "";
    body.replaceChildren(
      drawing(photo, answer, seen),
      el("p", { class: "answer" }, el("strong", {}, answer.label), ` ${percent(answer.score)}`),
      el("ol", {}, ...answer.top.slice(1, 3).map((one) => el("li", {}, `${one.label} ${percent(one.score)}`))),
      soft(`${pixels(answer.network_size)}${lost}`),
    );
    say(`${policy}: ${answer.label}, ${percent(answer.score)}`);
  } catch (error) {
    body.replaceChildren(problem(error));
  }
}

/** The part of the photograph that was seen, in the proportions in which it was. */
function drawing({ picture, name }, { size, network_size: network }, seen) {
  const factor = LONGEST / Math.max(...network);
  const node = canvas(...network.map((side) => Math.max(1, Math.round(side * factor))));
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", `What the network saw of ${name}`);
  drawPicture(node.getContext("2d"), picture, size, seen);
  return node;
}
