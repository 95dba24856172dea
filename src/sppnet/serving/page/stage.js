// A canvas as wide as its place allows, in the proportions of what it shows, drawn in the screen's own pixels.

import { el } from "./dom.js";

/**
 * Shows `part` of a photograph, [left, top, right, bottom] in its pixels. `draw(view)` is called whenever there is
 * something new, with {context, part, x(), y(): from pixels of the photograph to whole pixels of the canvas, unit:
 * canvas pixels of one CSS pixel}.
 */
export class Stage {
  /** `tallest`: most height, in hundredths of the window's. */
  constructor(part, label, draw, tallest = 72) {
    [this.drawing, this.tallest] = [draw, tallest];
    this.canvas = el("canvas", { role: "img", "aria-label": label });
    this.node = el("div", { class: "stage" }, this.canvas);
    this.show(part);
    this.observer = new ResizeObserver(() => this.redraw());
    this.observer.observe(this.canvas);
  }

  /** Show another part of the photograph. */
  show(part) {
    this.part = part;
    const [width, height] = [part[2] - part[0], part[3] - part[1]];
    this.canvas.style.aspectRatio = `${width} / ${height}`;
    this.node.style.maxWidth = `max(2rem, ${(this.tallest * width) / height}vh)`;
    this.redraw();
  }

  redraw() {
    const unit = window.devicePixelRatio || 1;
    const wide = Math.round(this.canvas.clientWidth * unit);
    const tall = Math.round(this.canvas.clientHeight * unit);
    if (!wide || !tall) return; // not in view
    if (this.canvas.width !== wide) this.canvas.width = wide;
    if (this.canvas.height !== tall) this.canvas.height = tall;
    const [left, top, right, bottom] = this.part;
    this.drawing({
      context: this.canvas.getContext("2d"),
      part: this.part,
      unit,
      x: (place) => Math.round(((place - left) * wide) / (right - left)),
      y: (place) => Math.round(((place - top) * tall) / (bottom - top)),
    });
  }

  /** Where on the photograph an event is, in its pixels, inside the part that is shown. */
  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const [left, top, right, bottom] = this.part;
    const inside = (share) => Math.min(Math.max(share, 0), 1);
    return [
      left + (right - left) * inside((event.clientX - box.left) / box.width),
      top + (bottom - top) * inside((event.clientY - box.top) / box.height),
    ];
  }
}

/** All of a photograph of [height, width]. */
export const whole = ([height, width]) => [0, 0, width, height];
