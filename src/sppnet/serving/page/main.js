// The page: what the server holds, photographs in, one after the other to the server, the chosen one in view.

import { getModel, setToken } from "./api.js";
import * as classify from "./classify.js";
import * as detect from "./detect.js";
import { el, grid, problem, say, soft } from "./dom.js";
import { canvas, loadPicture } from "./picture.js";
import * as regions from "./regions.js";
import * as segment from "./segment.js";

const VIEWS = { classify, detect, segment, regions };
const AT_ONCE = 2; // photographs that are asked about at a time
const FINAL = ["not_an_image", "too_many_pixels", "too_small"]; // what the same file would get again
const THUMB = [72, 96];

const at = (id) => document.getElementById(id);
const photos = [];
const waiting = [];
let running = 0;
let model = null;

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(at("token").value);
  at("token").value = "";
  start();
});
at("files").addEventListener("change", ({ target }) => {
  add(target.files);
  target.value = ""; // so that the same file can be chosen again
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
  at("trouble").hidden = true;
  try {
    model = await getModel((message) => (at("about").textContent = message));
  } catch (error) {
    const locked = error.code === "unauthorized";
    const again = locked && !at("token-form").hidden;
    at("token-form").hidden = !locked;
    at("trouble").hidden = locked && !again;
    at("trouble").textContent = again ? "That is not the server's token." : error.message;
    at("about").textContent = "";
    if (locked) at("token").focus();
    return;
  }
  at("token-form").hidden = true;
  document.title = at("name").textContent = `${model.name}: photographs of any size`;
  at("lead").textContent = VIEWS[model.task].lead(model);
  at("how-text").textContent = explanation(model);
  at("how").hidden = false;
  const classes = model.classes.length ? `${model.classes.length} classes` : "";
  const parts = [model.name, model.backbone, levelsText(model.levels), classes, `engine ${model.engine}`];
  at("about").textContent = [...parts, `sppnet ${model.version}`].filter(Boolean).join(" · ");
  enqueue();
}

function explanation({ task, levels, resize }) {
  const whole = !/^(warp|square-min|center-crop)/.test(resize ?? "native");
  const map =
    "A convolutional network turns a photograph into a map of cells: a larger photograph has a larger map" +
    (whole ? ", and nothing is cropped or squeezed." : ".");
  if (task === "segment") {
    return (
      `${map} At each cell the network looks at its surroundings at several distances at once and says what is there;` +
      " its answers are spread over the pixels."
    );
  }
  const [what, where] = task === "classify" ? ["photograph", "the map"] : ["box", "the part of the map under a box"];
  return (
    `${map} A pyramid of bins (${levelsText(levels)}) is laid over ${where}, and each bin becomes one number a` +
    ` channel. There are as many bins whatever the size, so every ${what} becomes a vector of one length, which one` +
    " classifier can read."
  );
}

const levelsText = (levels) => levels.map(([rows, columns]) => grid(rows, columns, "bin")).join(", ");

function add(files) {
  const images = [...files];
  if (!images.length) return;
  const added = images.map(create);
  choose(added[0]);
  say(`${images.length} photograph${images.length > 1 ? "s" : ""} added`);
  enqueue(...added);
}

function enqueue(...some) {
  for (const photo of some.filter(({ busy }) => !busy)) {
    photo.busy = true; // until it has an answer or an error: "Try again" may be pressed twice
    waiting.push(photo);
    progress(photo, "It waits for its turn.");
  }
  for (let free = AT_ONCE; free; free--) work();
}

/** A photograph: its file, its button in the strip, its panel. */
function create(file) {
  const stop = new AbortController();
  const photo = { file, name: file.name || "pasted photograph", picture: undefined, answer: null, busy: false, stop };
  photo.thumb = canvas(...THUMB);
  photo.thumb.setAttribute("aria-hidden", "true");
  photo.word = el("small", {}, "waiting …");
  const attributes = { type: "button", onclick: () => choose(photo) };
  photo.button = el("button", attributes, photo.thumb, el("span", {}, photo.name), photo.word);
  photo.item = el("li", {}, photo.button);
  photo.body = el("div", {});
  const button = el("button", { type: "button", class: "plain", onclick: () => remove(photo) }, "Remove");
  button.setAttribute("aria-label", `Remove ${photo.name}`);
  const heading = el("header", {}, el("h2", {}, photo.name), button);
  photo.panel = el("article", { class: "card", "aria-label": photo.name, hidden: true }, heading, photo.body);
  photos.push(photo);
  at("strip").firstElementChild.append(photo.item);
  at("strip").hidden = false;
  at("intake").classList.add("small");
  at("panels").append(photo.panel);
  return photo;
}

function choose(photo) {
  for (const one of photos) {
    one.panel.hidden = one !== photo;
    one.button.setAttribute("aria-current", String(one === photo));
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
  photo.panel.hidden = true; // so that an answer that still comes is not explained
  const next = photos[Math.min(index, photos.length - 1)];
  at("strip").hidden = !next;
  if (next) choose(next);
  (next?.button ?? at("files")).focus();
  say(`${photo.name} removed`);
}

async function work() {
  if (!model || running === AT_ONCE || !waiting.length) return;
  running += 1;
  try {
    await answer(waiting.shift());
  } finally {
    running -= 1;
    work();
  }
}

async function answer(photo) {
  progress(photo, "The server is looking at it.");
  try {
    photo.picture ??= await loadPicture(photo.file);
    drawThumb(photo);
    checkSize(photo.file);
    photo.answer = await VIEWS[model.task].ask(photo, model);
    photo.word.textContent = VIEWS[model.task].summary(photo.answer, model);
  } catch (error) {
    photo.word.textContent = "no answer";
    const again = el("button", { type: "button", class: "plain", onclick: () => enqueue(photo) }, "Try again");
    photo.body.replaceChildren(problem(error), ...(FINAL.includes(error.code) ? [] : [again]));
  }
  photo.busy = false;
  if (photo.stop.signal.aborted) return;
  say(`${photo.name}: ${photo.word.textContent}`);
  if (!photo.panel.hidden) show(photo);
}

/** Fill the panel of an answered photograph when it is first in view: what explains it is asked for only then. */
async function show(photo) {
  if (!photo.answer || photo.filled) return;
  photo.filled = true;
  photo.body.replaceChildren();
  try {
    await VIEWS[model.task].show(photo, model, photo.body);
  } catch (error) {
    photo.body.replaceChildren(problem(error));
  }
}

function progress(photo, text) {
  const bar = el("progress", { "aria-label": text });
  photo.body.replaceChildren(el("div", { class: "progress" }, bar, soft(text)));
}

function drawThumb({ picture, thumb }) {
  if (!picture) return;
  const { colour } = picture;
  const factor = Math.max(thumb.width / colour.width, thumb.height / colour.height);
  const [width, height] = [colour.width * factor, colour.height * factor];
  const context = thumb.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(colour, (thumb.width - width) / 2, (thumb.height - height) / 2, width, height);
}

const FORM = 2000; // bytes of a request around its file

/** What is too large is not sent: a server that will not read it all may be gone before it has answered. */
function checkSize({ size }) {
  const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
  const most = model.limits.bytes - FORM;
  if (size > most)
    throw new Error(`The file has ${megabytes(size)} MB; this server takes at most ${megabytes(most)} MB.`);
}
