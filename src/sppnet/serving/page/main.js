// The page: takes photographs, sends them to the server a few at a time and shows the selected one.

import { getModel, setToken } from "./api.js";
import * as classify from "./classify.js";
import * as detect from "./detect.js";
import { announce, el, errorMessage, grid, muted } from "./dom.js";
import * as features from "./features.js";
import { canvas, loadPicture } from "./picture.js";
import * as segment from "./segment.js";

const VIEWS = { classify, detect, segment, features };
const MAX_RUNNING = 2; // concurrent requests
const FINAL = ["not_an_image", "too_many_pixels", "too_small"]; // error codes for which retrying is pointless
const THUMB = [72, 96];

const byId = (id) => document.getElementById(id);
const photos = [];
const waiting = [];
let running = 0;
let model = null;

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(byId("token").value);
  byId("token").value = "";
  start();
});
byId("files").addEventListener("change", ({ target }) => {
  add(target.files);
  target.value = ""; // allow choosing the same file again
});
document.addEventListener("paste", ({ clipboardData }) => add(clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener(
  "dragleave",
  ({ relatedTarget }) => relatedTarget ?? document.body.classList.remove("dropping"),
);
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  add(event.dataTransfer.files);
});
start();

async function start() {
  byId("error").hidden = true;
  try {
    model = await getModel((message) => (byId("about").textContent = message));
  } catch (error) {
    const locked = error.code === "unauthorized";
    const retry = locked && !byId("token-form").hidden;
    byId("token-form").hidden = !locked;
    byId("error").hidden = locked && !retry;
    byId("error").textContent = retry ? "This token is not valid." : error.message;
    byId("about").textContent = "";
    if (locked) byId("token").focus();
    return;
  }
  byId("token-form").hidden = true;
  document.title = byId("name").textContent = `${model.name}: photographs of any size`;
  byId("lead").textContent = VIEWS[model.task].lead(model);
  byId("how-text").textContent = explanation(model);
  byId("how").hidden = false;
  const classes = model.classes.length ? `${model.classes.length} classes` : "";
  const parts = [model.name, model.backbone, levelsText(model.levels), classes, `runtime ${model.runtime}`];
  byId("about").textContent = [...parts, `sppnet ${model.version}`].filter(Boolean).join(" · ");
  enqueue();
}

function explanation({ task, levels, resize }) {
  const whole = !/^(warp|square-min|center-crop)/.test(resize ?? "native");
  const map =
    "A convolutional network turns a photograph into a feature map, a grid of cells: a larger photograph has a larger" +
    ` map${whole ? ", and nothing is cropped or warped" : ""}.`;
  if (task === "segment") {
    return (
      `${map} At each cell the network combines its surroundings at several distances to predict a class; the` +
      " predictions are then upsampled to the pixels."
    );
  }
  const [what, where] = task === "classify" ? ["photograph", "the map"] : ["box", "the part of the map under a box"];
  return (
    `${map} A pyramid of bins (${levelsText(levels)}) divides ${where}, and each bin is pooled to one value per` +
    ` channel. The number of bins does not depend on the size, so every ${what} becomes a vector of the same length,` +
    " which one classifier can handle."
  );
}

const levelsText = (levels) => levels.map(([rows, columns]) => grid(rows, columns, "bin")).join(", ");

function add(files) {
  const images = [...files];
  if (!images.length) return;
  const added = images.map(create);
  select(added[0]);
  announce(`${images.length} photograph${images.length > 1 ? "s" : ""} added`);
  enqueue(...added);
}

function enqueue(...added) {
  for (const photo of added.filter(({ busy }) => !busy)) {
    photo.busy = true; // until it has an answer or an error, since "Try again" may be pressed twice
    waiting.push(photo);
    progress(photo, "Queued …");
  }
  for (let free = MAX_RUNNING; free; free--) work();
}

/** Create a photograph with its button in the strip and its panel. */
function create(file) {
  const stop = new AbortController();
  const photo = { file, name: file.name || "pasted photograph", picture: undefined, answer: null, busy: false, stop };
  photo.thumb = canvas(...THUMB);
  photo.thumb.setAttribute("aria-hidden", "true");
  photo.caption = el("small", {}, "waiting …");
  const attributes = { type: "button", onclick: () => select(photo) };
  photo.button = el("button", attributes, photo.thumb, el("span", {}, photo.name), photo.caption);
  photo.item = el("li", {}, photo.button);
  photo.body = el("div", {});
  const button = el("button", { type: "button", class: "plain", onclick: () => remove(photo) }, "Remove");
  button.setAttribute("aria-label", `Remove ${photo.name}`);
  const heading = el("header", {}, el("h2", {}, photo.name), button);
  photo.panel = el("article", { class: "card", "aria-label": photo.name, hidden: true }, heading, photo.body);
  photos.push(photo);
  byId("strip").firstElementChild.append(photo.item);
  byId("strip").hidden = false;
  byId("intake").classList.add("small");
  byId("panels").append(photo.panel);
  return photo;
}

function select(photo) {
  for (const other of photos) {
    other.panel.hidden = other !== photo;
    other.button.setAttribute("aria-current", String(other === photo));
  }
  show(photo);
}

function remove(photo) {
  const index = photos.indexOf(photo);
  photos.splice(index, 1);
  photo.stop.abort();
  if (waiting.includes(photo)) waiting.splice(waiting.indexOf(photo), 1);
  photo.item.remove();
  photo.panel.remove();
  photo.panel.hidden = true; // an answer that arrives later is not shown
  const next = photos[Math.min(index, photos.length - 1)];
  byId("strip").hidden = !next;
  if (next) select(next);
  (next?.button ?? byId("files")).focus();
  announce(`${photo.name} removed`);
}

async function work() {
  if (!model || running === MAX_RUNNING || !waiting.length) return;
  running += 1;
  try {
    await answer(waiting.shift());
  } finally {
    running -= 1;
    work();
  }
}

async function answer(photo) {
  progress(photo, "Processing …");
  try {
    photo.picture ??= await loadPicture(photo.file);
    drawThumb(photo);
    checkSize(photo.file);
    photo.answer = await VIEWS[model.task].ask(photo, model);
    photo.caption.textContent = VIEWS[model.task].summary(photo.answer, model);
  } catch (error) {
    photo.caption.textContent = "failed";
    const retry = el("button", { type: "button", class: "plain", onclick: () => enqueue(photo) }, "Try again");
    photo.body.replaceChildren(errorMessage(error), ...(FINAL.includes(error.code) ? [] : [retry]));
  }
  photo.busy = false;
  if (photo.stop.signal.aborted) return;
  announce(`${photo.name}: ${photo.caption.textContent}`);
  if (!photo.panel.hidden) show(photo);
}

/** Fill the panel of a photograph when it is first selected; explanations are not requested earlier. */
async function show(photo) {
  if (!photo.answer || photo.filled) return;
  photo.filled = true;
  photo.body.replaceChildren();
  try {
    await VIEWS[model.task].show(photo, model, photo.body);
  } catch (error) {
    photo.body.replaceChildren(errorMessage(error));
  }
}

function progress(photo, text) {
  const bar = el("progress", { "aria-label": text });
  photo.body.replaceChildren(el("div", { class: "progress" }, bar, muted(text)));
}

function drawThumb({ picture, thumb }) {
  if (!picture) return;
  const { color } = picture;
  const factor = Math.max(thumb.width / color.width, thumb.height / color.height);
  const [width, height] = [color.width * factor, color.height * factor];
  const context = thumb.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(color, (thumb.width - width) / 2, (thumb.height - height) / 2, width, height);
}

const FORM_BYTES = 2000; // size of a request without its file

/** Refuse oversized files here: a server that stops reading may close the connection before its error arrives. */
function checkSize({ size }) {
  const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
  const limit = model.limits.max_bytes - FORM_BYTES;
  if (size > limit)
    throw new Error(`The file has ${megabytes(size)} MB; this server accepts at most ${megabytes(limit)} MB.`);
}
