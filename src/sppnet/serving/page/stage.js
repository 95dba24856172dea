// A canvas that fills the available width, keeps its aspect ratio and is drawn at the screen's resolution.

import { el } from "./dom.js";

/**
 * Shows `part` of a photograph, [left, top, right, bottom] in its pixels. `draw(view)` is called for every redraw, with
 * {context, part, x(), y(): photograph coordinates to whole canvas pixels, unit: canvas pixels per CSS pixel}.
 */
export class Stage {
  /** `maxHeight`: in percent of the window height. */
  constructor(part, label, draw, maxHeight = 72) {
    [this.draw, this.maxHeight] = [draw, maxHeight];
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
    this.node.style.maxWidth = `max(2rem, ${(this.maxHeight * width) / height}vh)`;
    this.redraw();
  }

  redraw() {
    const unit = window.devicePixelRatio || 1;
    const width = Math.round(this.canvas.clientWidth * unit);
    const height = Math.round(this.canvas.clientHeight * unit);
    if (!width || !height) return; // hidden
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== height) this.canvas.height = height;
    const [left, top, right, bottom] = this.part;
    this.draw({
      context: this.canvas.getContext("2d"),
      part: this.part,
      unit,
      x: (value) => Math.round(((value - left) * width) / (right - left)),
      y: (value) => Math.round(((value - top) * height) / (bottom - top)),
    });
  }

  /** The position of an event in pixels of the photograph, clamped to the visible part. */
  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const [left, top, right, bottom] = this.part;
    const clamp = (share) => Math.min(Math.max(share, 0), 1);
    return [
      left + (right - left) * clamp((event.clientX - box.left) / box.width),
      top + (bottom - top) * clamp((event.clientY - box.top) / box.height),
    ];
  }
}

/** The part that is the whole photograph of [height, width]. */
export const whole = ([height, width]) => [0, 0, width, height];
