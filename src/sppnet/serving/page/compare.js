// Comparison of resize policies: native, warp and center crop side by side, with network input and prediction.

import { postJson } from "./api.js";
import { announce, el, errorMessage, muted, percent, pixels } from "./dom.js";
import { canvas, drawPicture } from "./picture.js";

const LONGEST = 640; // longest side of the drawings, pixels
const TITLE = "Compare native, warp and crop side by side";
const WORDS = {
  native: "original size",
  "shorter-side": "fixed shorter side",
  "square-min": "warped to a square",
  warp: "warped to a square",
  "center-crop": "cropped from the center",
};

/** A button that is replaced by the comparison when pressed. */
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

/** The model's own policy (native if that is a warp or crop), a warp, and a crop. */
function policies({ resize, resizes }) {
  const first = (kind) => resizes.find((name) => name.startsWith(kind));
  const others = [first("warp:"), first("center-crop:")].filter(Boolean);
  return [others.includes(resize) ? "native" : resize, ...others];
}

function column(photo, policy) {
  const body = el("div", {}, muted("Loading …"));
  fill(photo, policy, body);
  const words = el("small", {}, WORDS[policy.split(":")[0]]);
  return el("section", { "aria-label": policy }, el("h4", {}, policy, " ", words), body);
}

async function fill(photo, policy, body) {
  const fields = { image: photo.file, resize: policy };
  try {
    const [answer, { seen }] = await Promise.all([postJson("v1/predict", fields), postJson("v1/explain", fields)]);
    const share = ((seen[2] - seen[0]) * (seen[3] - seen[1])) / (answer.size[0] * answer.size[1]);
    const lost = share < 0.995 ? `; ${percent(1 - share, 0)} of the photograph is cropped away` : "";
    body.replaceChildren(
      drawing(photo, answer, seen),
      el("p", { class: "answer" }, el("strong", {}, answer.label), ` ${percent(answer.score)}`),
      el("ol", {}, ...answer.top.slice(1, 3).map(({ label, score }) => el("li", {}, `${label} ${percent(score)}`))),
      muted(`${pixels(answer.network_size)}${lost}`),
    );
    announce(`${policy}: ${answer.label}, ${percent(answer.score)}`);
  } catch (error) {
    body.replaceChildren(errorMessage(error));
  }
}

/** Draw the part of the photograph that the network saw, in the aspect ratio of its input. */
function drawing({ picture, name }, { size, network_size: input }, seen) {
  const factor = LONGEST / Math.max(...input);
  const node = canvas(...input.map((side) => Math.max(1, Math.round(side * factor))));
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", `Network input for ${name}`);
  drawPicture(node.getContext("2d"), picture, size, seen);
  return node;
}
