// What is drawn over a photograph: tints, outlines, boxes, grids. Boxes are [left, top, right, bottom] in its pixels.

const HELPED = "20,110,230";
const AGAINST = "236,95,0";
const FIELD = "255,176,32";
const FAINTEST = 0.06;
const STRONGEST = 0.78;

/**
 * The bins' places side by side: where neighbours share cells, each goes to the middle of what they share; where a map
 * has too few cells for that, all are of one size.
 */
export function fields({ rows, columns, bins }) {
  const xs = cuts(bins.slice(0, columns).map(({ box }) => [box[0], box[2]]));
  const ys = cuts(Array.from({ length: rows }, (_, row) => bins[row * columns].box).map((box) => [box[1], box[3]]));
  return bins.map((_, index) => {
    const [row, column] = [Math.floor(index / columns), index % columns];
    return [xs[column], ys[row], xs[column + 1], ys[row + 1]];
  });
}

function cuts(sides) {
  const [first, last] = [sides[0][0], sides.at(-1)[1]];
  const edges = [first, ...sides.slice(1).map(([begin], before) => (begin + sides[before][1]) / 2), last];
  if (edges.slice(1).every((edge, before) => edge > edges[before])) return edges;
  return edges.map((_, place) => first + ((last - first) * place) / sides.length);
}

/** Whether neighbours share cells somewhere. */
export function overlap({ columns, bins }) {
  return bins.some(({ box }, index) => {
    const [right, below] = [(index + 1) % columns ? bins[index + 1] : null, bins[index + columns]];
    return (right && right.box[0] < box[2]) || (below && below.box[1] < box[3]);
  });
}

/** Tint places by their values: helped or spoke against, the stronger the nearer to `most`. */
export function drawValues(view, places, values, most) {
  for (const [index, value] of values.entries()) {
    const strength = FAINTEST + (STRONGEST - FAINTEST) * Math.min(1, Math.abs(value) / most);
    if (value) fill(view, places[index], `rgba(${value > 0 ? HELPED : AGAINST},${strength})`);
  }
}

/** Tint places in turns, like the fields of a chessboard. */
export function drawChessboard(view, places, columns) {
  for (const [index, place] of places.entries()) {
    const dark = (Math.floor(index / columns) + (index % columns)) % 2;
    fill(view, place, `rgba(${FIELD},${dark ? 0.12 : 0.42})`);
  }
}

function fill({ context, x, y }, box, style) {
  context.fillStyle = style;
  context.fillRect(x(box[0]), y(box[1]), x(box[2]) - x(box[0]), y(box[3]) - y(box[1]));
}

/** Lines between places; fainter where these are small on the screen, and none where they are tiny. */
export function drawLines(view, places) {
  const { context, x, y, unit } = view;
  const narrowest = Math.min(...places.map((box) => Math.min(x(box[2]) - x(box[0]), y(box[3]) - y(box[1]))));
  if (narrowest < 5 * unit) return;
  const fine = narrowest < 36 * unit;
  context.lineWidth = fine ? unit : 1.5 * unit;
  context.strokeStyle = fine ? "rgba(255,255,255,0.3)" : "rgba(255,255,255,0.85)";
  context.beginPath();
  for (const [left, top, right, bottom] of places)
    context.rect(x(left), y(top), x(right) - x(left), y(bottom) - y(top));
  context.stroke();
}

/** A box that stands out on any ground: a line in its colour between two dark ones. */
export function drawBox(view, box, colour, thick = 2) {
  stroke(view, box, "rgba(0,0,0,0.75)", thick + 2, 0);
  stroke(view, box, colour, thick, 1);
}

/** All of the line is inside the box, so that it shows at the photograph's edge. */
function stroke({ context, x, y, unit }, box, style, thick, inset) {
  const shift = (inset + thick / 2) * unit;
  const [left, top] = [x(box[0]) + shift, y(box[1]) + shift];
  context.lineWidth = thick * unit;
  context.strokeStyle = style;
  context.strokeRect(left, top, Math.max(1, x(box[2]) - shift - left), Math.max(1, y(box[3]) - shift - top));
}

/** A name at a box's upper left corner, inside the canvas. */
export function drawName({ context, x, y, unit }, box, text, colour) {
  context.font = `600 ${12 * unit}px system-ui, sans-serif`;
  const [width, height] = [context.measureText(text).width + 8 * unit, 17 * unit];
  const left = Math.max(0, Math.min(x(box[0]), context.canvas.width - width));
  const top = Math.max(0, y(box[1]) - height);
  context.fillStyle = colour;
  context.fillRect(left, top, width, height);
  context.fillStyle = "#000";
  context.textBaseline = "middle";
  context.fillText(text, left + 4 * unit, top + height / 2);
}

/** Darken all but a box. */
export function drawShade({ context, x, y }, box, strength) {
  const { width, height } = context.canvas;
  context.fillStyle = `rgba(10,12,16,${strength})`;
  context.beginPath();
  context.rect(0, 0, width, height);
  context.rect(x(box[0]), y(box[1]), x(box[2]) - x(box[0]), y(box[3]) - y(box[1]));
  context.fill("evenodd");
}

/** Places of cells between these edges, row by row. */
export const between = (xs, ys) =>
  ys.slice(1).flatMap((bottom, row) => xs.slice(1).map((right, column) => [xs[column], ys[row], right, bottom]));

/** Bright colours that are far apart, for outlines and names under black text. */
export const classColour = (index) => `hsl(${(48 + index * 137.5) % 360} 95% 66%)`;
