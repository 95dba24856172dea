// Drawing over a photograph: tints, outlines, boxes, grids. Boxes are [left, top, right, bottom] in its pixels.

const FOR = "20,110,230";
const AGAINST = "236,95,0";
const SQUARE = "255,176,32";
const FAINTEST = 0.06;
const STRONGEST = 0.78;

/**
 * Rectangles of the bins, without overlap: neighbors that share cells are cut in the middle of the overlap. If the map
 * has too few cells for that, all rectangles have the same size.
 */
export function binRects({ columns, bins }) {
  const xs = boundaries(bins.slice(0, columns).map(({ box }) => [box[0], box[2]]));
  const ys = boundaries(bins.filter((_, index) => index % columns === 0).map(({ box }) => [box[1], box[3]]));
  return bins.map((_, index) => {
    const [row, column] = [Math.floor(index / columns), index % columns];
    return [xs[column], ys[row], xs[column + 1], ys[row + 1]];
  });
}

function boundaries(sides) {
  const [first, last] = [sides[0][0], sides.at(-1)[1]];
  const edges = [first, ...sides.slice(1).map(([start], previous) => (start + sides[previous][1]) / 2), last];
  if (edges.slice(1).every((edge, previous) => edge > edges[previous])) return edges;
  return edges.map((_, index) => first + ((last - first) * index) / sides.length);
}

/** Whether any neighboring bins share cells. */
export function overlap({ columns, bins }) {
  return bins.some(({ box }, index) => {
    const [right, below] = [(index + 1) % columns ? bins[index + 1] : null, bins[index + columns]];
    return (right && right.box[0] < box[2]) || (below && below.box[1] < box[3]);
  });
}

/** Tint rectangles by sign and magnitude of their values; `largest` gets the strongest tint. */
export function drawValues(view, rects, values, largest) {
  for (const [index, value] of values.entries()) {
    const strength = FAINTEST + (STRONGEST - FAINTEST) * Math.min(1, Math.abs(value) / largest);
    if (value) fill(view, rects[index], `rgba(${value > 0 ? FOR : AGAINST},${strength})`);
  }
}

/** Tint rectangles in a checkerboard pattern. */
export function drawCheckerboard(view, rects, columns) {
  for (const [index, rect] of rects.entries()) {
    const dark = (Math.floor(index / columns) + (index % columns)) % 2;
    fill(view, rect, `rgba(${SQUARE},${dark ? 0.12 : 0.42})`);
  }
}

function fill({ context, x, y }, box, style) {
  context.fillStyle = style;
  context.fillRect(x(box[0]), y(box[1]), x(box[2]) - x(box[0]), y(box[3]) - y(box[1]));
}

/** Outline rectangles; fainter if they are small on the screen, and not at all if they are tiny. */
export function drawLines(view, rects) {
  const { context, x, y, unit } = view;
  const narrowest = Math.min(...rects.map((box) => Math.min(x(box[2]) - x(box[0]), y(box[3]) - y(box[1]))));
  if (narrowest < 5 * unit) return;
  const fine = narrowest < 36 * unit;
  context.lineWidth = fine ? unit : 1.5 * unit;
  context.strokeStyle = fine ? "rgba(255,255,255,0.3)" : "rgba(255,255,255,0.85)";
  context.beginPath();
  for (const [left, top, right, bottom] of rects)
    context.rect(x(left), y(top), x(right) - x(left), y(bottom) - y(top));
  context.stroke();
}

/** Draw a box that is visible on any background: a colored line between two dark ones. */
export function drawBox(view, box, color, width = 2) {
  stroke(view, box, "rgba(0,0,0,0.75)", width + 2, 0);
  stroke(view, box, color, width, 1);
}

/** Draw the line entirely inside the box, so that it is visible at the edge of the photograph. */
function stroke({ context, x, y, unit }, box, style, width, inset) {
  const shift = (inset + width / 2) * unit;
  const [left, top] = [x(box[0]) + shift, y(box[1]) + shift];
  context.lineWidth = width * unit;
  context.strokeStyle = style;
  context.strokeRect(left, top, Math.max(1, x(box[2]) - shift - left), Math.max(1, y(box[3]) - shift - top));
}

/** Draw a name at the upper left corner of a box, within the canvas. */
export function drawName({ context, x, y, unit }, box, text, color) {
  context.font = `600 ${12 * unit}px system-ui, sans-serif`;
  const [width, height] = [context.measureText(text).width + 8 * unit, 17 * unit];
  const left = Math.max(0, Math.min(x(box[0]), context.canvas.width - width));
  const top = Math.max(0, y(box[1]) - height);
  context.fillStyle = color;
  context.fillRect(left, top, width, height);
  context.fillStyle = "#000";
  context.textBaseline = "middle";
  context.fillText(text, left + 4 * unit, top + height / 2);
}

/** Darken everything outside a box. */
export function drawShade({ context, x, y }, box, strength) {
  const { width, height } = context.canvas;
  context.fillStyle = `rgba(10,12,16,${strength})`;
  context.beginPath();
  context.rect(0, 0, width, height);
  context.rect(x(box[0]), y(box[1]), x(box[2]) - x(box[0]), y(box[3]) - y(box[1]));
  context.fill("evenodd");
}

/** Rectangles of the cells between the given edges, row by row. */
export const cellRects = (xs, ys) =>
  ys.slice(1).flatMap((bottom, row) => xs.slice(1).map((right, column) => [xs[column], ys[row], right, bottom]));

/** Bright, well-separated colors, for outlines and as a background for black text. */
export const classColor = (index) => `hsl(${(48 + index * 137.5) % 360} 95% 66%)`;
