// Photographs as the browser draws them; the server's own pixels are what counts, so sizes are always its.

import { el } from "./dom.js";

const LONGEST = 1600; // of what is kept for drawing, pixels

/** What can be drawn of a file: {size: [height, width], colour, grey}, two canvases; null if the browser cannot. */
export async function loadPicture(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file); // turned as its EXIF orientation says, as the server does
  } catch {
    return null;
  }
  const size = [bitmap.height, bitmap.width];
  const factor = Math.min(1, LONGEST / Math.max(...size));
  const colour = canvas(...size.map((side) => Math.max(1, Math.round(side * factor))));
  const context = colour.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff"; // under what is transparent, as in the server
  context.fillRect(0, 0, colour.width, colour.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, colour.width, colour.height);
  bitmap.close();
  let grey = null; // made when it is first drawn
  return { size, colour, get grey() { return (grey ??= greyOf(colour)); } };
}

export function canvas(height, width) {
  const node = document.createElement("canvas");
  [node.height, node.width] = [height, width];
  return node;
}

function greyOf(colour) {
  const grey = canvas(colour.height, colour.width);
  const pixels = colour.getContext("2d").getImageData(0, 0, colour.width, colour.height);
  const { data } = pixels;
  for (let at = 0; at < data.length; at += 4) {
    data[at] = data[at + 1] = data[at + 2] = 0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2];
  }
  grey.getContext("2d").putImageData(pixels, 0, 0);
  return grey;
}

/** Fill a canvas with part of a photograph of [height, width], or with a plain ground where there is no picture. */
export function drawPicture(context, picture, size, part, kind = "colour") {
  const { width, height } = context.canvas;
  if (!picture) {
    context.fillStyle = "#8a8f98";
    context.fillRect(0, 0, width, height);
    return;
  }
  const [across, down] = [picture[kind].width / size[1], picture[kind].height / size[0]];
  const [left, top, right, bottom] = part;
  const from = [left * across, top * down, (right - left) * across, (bottom - top) * down];
  context.imageSmoothingQuality = "high";
  context.drawImage(picture[kind], ...from, 0, 0, width, height);
}

/** A note for photographs that only the server can read; nothing for others. */
export function pictureNote(picture) {
  const text = "This browser cannot draw this kind of file, so the answer is drawn on a grey ground.";
  return picture ? "" : el("p", { class: "note" }, text);
}
