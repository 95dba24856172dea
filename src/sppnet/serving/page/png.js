// Decoder for grayscale and palette PNGs. A canvas would return palette colors, which several classes may share.

const [GRAY, PALETTE] = [0, 3]; // color types with one value per pixel
const UNSUPPORTED = "This page cannot read the PNG format of the mask.";

/** Decode a base64 PNG. @returns {width, height, values}: one class index per pixel, row by row. */
export async function decodePng(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const parts = [];
  let header = null;
  for (let offset = 8; offset < bytes.length;) {
    const length = view.getUint32(offset);
    const chunk = String.fromCharCode(...bytes.subarray(offset + 4, offset + 8));
    const start = offset + 8;
    if (chunk === "IHDR") header = readHeader(view, start);
    if (chunk === "IDAT") parts.push(bytes.subarray(start, start + length));
    offset = start + length + 4;
  }
  if (!header || ![GRAY, PALETTE].includes(header.color) || header.interlaced) throw new Error(UNSUPPORTED);
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  const data = new Uint8Array(await new Response(stream).arrayBuffer());
  const { width, height, depth } = header;
  const pitch = Math.ceil((width * depth) / 8);
  unfilter(data, height, pitch, Math.ceil(depth / 8));
  return { width, height, values: unpack(data, width, height, depth, pitch) };
}

function readHeader(view, offset) {
  const [width, height] = [view.getUint32(offset), view.getUint32(offset + 4)];
  return {
    width,
    height,
    depth: view.getUint8(offset + 8),
    color: view.getUint8(offset + 9),
    interlaced: view.getUint8(offset + 12),
  };
}

/** Undo the row filters in place; each row is a filter byte followed by `pitch` bytes. */
function unfilter(data, height, pitch, step) {
  for (let row = 0; row < height; row++) {
    const start = row * (pitch + 1) + 1;
    const filter = data[start - 1];
    for (let i = start; filter && i < start + pitch; i++) {
      const left = i - start >= step ? data[i - step] : 0;
      const up = row ? data[i - pitch - 1] : 0;
      const corner = row && i - start >= step ? data[i - pitch - 1 - step] : 0;
      data[i] += [0, left, up, (left + up) >> 1, paeth(left, up, corner)][filter]; // wraps modulo 256
    }
  }
}

function paeth(left, up, corner) {
  const estimate = left + up - corner;
  const [a, b, c] = [left, up, corner].map((value) => Math.abs(estimate - value));
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
