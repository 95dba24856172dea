// Segmenters: the class mask over the photograph, and the share of taps of each atrous rate that fall on the map.

import { postJson } from "./api.js";
import { columns, el, errorMessage, grid, muted, percent, pixels, slider } from "./dom.js";
import { canvas, drawPicture, pictureNote } from "./picture.js";
import { decodePng } from "./png.js";
import { Stage, whole } from "./stage.js";

const LONGEST = 1200; // longest side of the overlay, pixels

export const lead = () => "Add photographs to assign a class to every pixel, at the photograph's own size.";

export const ask = ({ file, stop }) => postJson("v1/predict", { image: file }, stop.signal);

export function summary({ classes }) {
  return classes.slice(0, 2).map(({ label, share }) => `${label} ${percent(share, 0)}`).join(", ");
}

export async function show(photo, model, panel) {
  const { answer } = photo;
  const mask = await decodePng(answer.mask);
  const hidden = new Set(); // indices of hidden classes
  const index = new Map(model.classes.map((name, number) => [name, number]));
  let opacity = 0.6;
  let overlay = null;

  const stage = new Stage(
    whole(answer.size),
    `Photograph ${photo.name} with its classes in color: ${summary(answer)}`,
    draw,
  );
  const readout = el("output", { class: "readout" }, "Point at the photograph to see the class of a pixel.");
  stage.canvas.addEventListener("pointermove", (event) => (readout.textContent = classAt(stage.point(event))));
  const amount = el("output", {}, percent(opacity, 0));
  const slide = slider("Opacity of the colors", amount, { min: "0", max: "100", value: 100 * opacity }, setOpacity);
  const boxes = answer.classes.map(({ label, share }) => toggle(label, share));
  const buttons = [
    ["Show all", true],
    ["Hide all", false],
  ].map(([text, on]) => el("button", { type: "button", class: "plain", onclick: () => showAll(on) }, text));
  const taps = el("div", {});

  panel.append(
    columns(
      [stage.node, readout],
      el("p", { class: "answer" }, summary(answer)),
      muted(pixels(answer.size)),
      pictureNote(photo.picture),
      slide.node,
      el(
        "fieldset",
        { class: "toggles" },
        el("legend", {}, "Classes and their area"),
        ...boxes,
        el("p", {}, ...buttons),
      ),
    ),
    taps,
  );
  paint();
  if (model.rates.length) showTaps(photo, taps);

  function toggle(label, share) {
    const swatch = el("i", { class: "swatch", "aria-hidden": "true" });
    swatch.style.background = `rgb(${model.colours[index.get(label)].join(",")})`;
    const change = ({ target }) => {
      hidden[target.checked ? "delete" : "add"](index.get(label));
      paint();
    };
    const box = el("input", { type: "checkbox", checked: true, onchange: change });
    return el("label", {}, box, swatch, el("span", {}, label), " ", el("small", {}, percent(share)));
  }

  function showAll(on) {
    hidden.clear();
    if (!on) for (const { label } of answer.classes) hidden.add(index.get(label));
    for (const label of boxes) label.firstChild.checked = on;
    paint();
  }

  function setOpacity() {
    opacity = Number(slide.input.value) / 100;
    amount.textContent = percent(opacity, 0);
    stage.redraw();
  }

  function classAt([x, y]) {
    const column = Math.min(Math.floor((x * mask.width) / answer.size[1]), mask.width - 1);
    const row = Math.min(Math.floor((y * mask.height) / answer.size[0]), mask.height - 1);
    return model.classes[mask.values[row * mask.width + column]];
  }

  function paint() {
    overlay = paintMask(mask, model.colours, hidden);
    stage.redraw();
  }

  function draw({ context, part }) {
    drawPicture(context, photo.picture, answer.size, part);
    context.globalAlpha = opacity;
    context.imageSmoothingEnabled = false;
    context.drawImage(overlay, 0, 0, context.canvas.width, context.canvas.height);
    context.globalAlpha = 1;
    context.imageSmoothingEnabled = true;
  }
}

/** Paint the visible classes onto a canvas, with nearest-neighbor sampling of the mask. */
function paintMask({ width, height, values }, colors, hidden) {
  const factor = Math.min(1, LONGEST / Math.max(width, height));
  const node = canvas(...[height, width].map((side) => Math.max(1, Math.round(side * factor))));
  const context = node.getContext("2d");
  const image = context.createImageData(node.width, node.height);
  for (let row = 0, out = 0; row < node.height; row++) {
    const start = Math.floor(((row + 0.5) * height) / node.height) * width;
    for (let column = 0; column < node.width; column++, out += 4) {
      const value = values[start + Math.floor(((column + 0.5) * width) / node.width)];
      if (hidden.has(value)) continue;
      const [red, green, blue] = colors[value] ?? [0, 0, 0];
      [image.data[out], image.data[out + 1], image.data[out + 2], image.data[out + 3]] = [red, green, blue, 255];
    }
  }
  context.putImageData(image, 0, 0);
  return node;
}

async function showTaps(photo, node) {
  try {
    const { map_size: size, rates } = await postJson("v1/explain", { image: photo.file });
    const map = grid(...size, "cell");
    const text =
      `The network reads 3 × 3 taps around each cell of its feature map, one or more cells apart. The map of this` +
      ` photograph has ${map}; near its edges, distant taps fall outside the map and contribute nothing. Each value` +
      ` is the share of cells for which that tap falls on the map.`;
    node.replaceChildren(el("h3", {}, "Live taps"), muted(text), el("div", { class: "taps" }, ...rates.map(diagram)));
  } catch (error) {
    node.replaceChildren(errorMessage(error));
  }
}

function diagram({ rate, share, live }) {
  const field = (value) => {
    const cell = el("td", {}, percent(value, 0));
    cell.style.setProperty("--live", value);
    return cell;
  };
  const rows = [0, 3, 6].map((start) => el("tr", {}, ...live.slice(start, start + 3).map(field)));
  return el(
    "table",
    {},
    el("caption", {}, el("b", {}, `Rate ${rate}`), `: ${percent(share, 0)} live`),
    el("tbody", {}, ...rows),
  );
}
