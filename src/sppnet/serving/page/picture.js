// Photographs as the browser draws them. Sizes always come from the server, which decodes the file itself.

import { el } from "./dom.js";

const LONGEST = 1600; // longest side of the copy for drawing, pixels

/** Decode a file to {size: [height, width], color, gray}, with two canvases; null if the browser cannot decode it. */
export async function loadPicture(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file); // applies the EXIF orientation, like the server
  } catch {
    return null;
  }
  const size = [bitmap.height, bitmap.width];
  const factor = Math.min(1, LONGEST / Math.max(...size));
  const color = canvas(...size.map((side) => Math.max(1, Math.round(side * factor))));
  const context = color.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff"; // background of transparent pixels, like on the server
  context.fillRect(0, 0, color.width, color.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, color.width, color.height);
  bitmap.close();
  let gray = null; // created on first use
  return { size, color, get gray() { return (gray ??= toGray(color)); } };
}

export function canvas(height, width) {
  const node = document.createElement("canvas");
  [node.height, node.width] = [height, width];
  return node;
}

function toGray(color) {
  const gray = canvas(color.height, color.width);
  const pixels = color.getContext("2d").getImageData(0, 0, color.width, color.height);
  const { data } = pixels;
  for (let i = 0; i < data.length; i += 4) {
    data[i] = data[i + 1] = data[i + 2] = 0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2];
  }
  gray.getContext("2d").putImageData(pixels, 0, 0);
  return gray;
}

/** Draw a part of a photograph of the given [height, width], or a plain background if there is no picture. */
export function drawPicture(context, picture, size, part, kind = "color") {
  const { width, height } = context.canvas;
  if (!picture) {
    context.fillStyle = "#8a8f98";
    context.fillRect(0, 0, width, height);
    return;
  }
  const [scaleX, scaleY] = [picture[kind].width / size[1], picture[kind].height / size[0]];
  const [left, top, right, bottom] = part;
  const source = [left * scaleX, top * scaleY, (right - left) * scaleX, (bottom - top) * scaleY];
  context.imageSmoothingQuality = "high";
  context.drawImage(picture[kind], ...source, 0, 0, width, height);
}

/** A note for photographs that only the server can decode, otherwise empty. */
export function pictureNote(picture) {
  const text = "This browser cannot display this file type, so results are drawn on a gray background.";
  return picture ? "" : el("p", { class: "note" }, text);
}
