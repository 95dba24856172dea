// Values of a grey or palette PNG. A canvas would give the palette's colours, and two classes may share one.

const [GREY, PALETTE] = [0, 3]; // kinds with one number a pixel
const UNKNOWN = "The mask is of a kind that this page does not read.";

/** @returns {width, height, values}: one class index a pixel, row by row, of a PNG in base64. */
export async function decodePng(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const parts = [];
  let header = null;
  for (let at = 8; at < bytes.length;) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const start = at + 8;
    if (kind === "IHDR") header = readHeader(view, start);
    if (kind === "IDAT") parts.push(bytes.subarray(start, start + length));
    at = start + length + 4;
  }
  if (!header || ![GREY, PALETTE].includes(header.colour) || header.interlaced) throw new Error(UNKNOWN);
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  const data = new Uint8Array(await new Response(stream).arrayBuffer());
  const { width, height, depth } = header;
  const pitch = Math.ceil((width * depth) / 8);
  unfilter(data, height, pitch, Math.ceil(depth / 8));
  return { width, height, values: unpack(data, width, height, depth, pitch) };
}

function readHeader(view, at) {
  const [width, height] = [view.getUint32(at), view.getUint32(at + 4)];
  return {
    width,
    height,
    depth: view.getUint8(at + 8),
    colour: view.getUint8(at + 9),
    interlaced: view.getUint8(at + 12),
  };
}

/** Undo the filters of all rows, in place; each row is a byte for its filter, then `pitch` bytes. */
function unfilter(data, height, pitch, step) {
  for (let row = 0; row < height; row++) {
    const start = row * (pitch + 1) + 1;
    const filter = data[start - 1];
    for (let at = start; filter && at < start + pitch; at++) {
      const left = at - start >= step ? data[at - step] : 0;
      const up = row ? data[at - pitch - 1] : 0;
      const corner = row && at - start >= step ? data[at - pitch - 1 - step] : 0;
      data[at] += [0, left, up, (left + up) >> 1, paeth(left, up, corner)][filter]; // modulo 256 by its type
    }
  }
}

function paeth(left, up, corner) {
  const guess = left + up - corner;
  const [a, b, c] = [left, up, corner].map((value) => Math.abs(guess - value));
  return a <= b && a <= c ? left : b <= c ? up : corner;
}

function unpack(data, width, height, depth, pitch) {
  const values = depth === 16 ? new Uint16Array(width * height) : new Uint8Array(width * height);
  for (let row = 0, out = 0; row < height; row++) {
    const start = row * (pitch + 1) + 1;
    for (let column = 0; column < width; column++, out++) {
      if (depth === 8) values[out] = data[start + column];
      else if (depth === 16) values[out] = (data[start + 2 * column] << 8) | data[start + 2 * column + 1];
      else {
        const bit = column * depth;
        values[out] = (data[start + (bit >> 3)] >> (8 - depth - (bit & 7))) & ((1 << depth) - 1);
      }
    }
  }
  return values;
}
