// A picture with a brush over it. Strokes are kept as lines, so undo is exact and the mask has the picture's own size.
import { h, withinSight } from "./dom.js";
import { t } from "./i18n.js";
import { typing } from "./keys.js";
import { singleKeys } from "./keys.js";
import { greyPng } from "./png.js";

const PAINT = "#e0304e";
const SIZES = { min: 2, max: 160 };
const megapixels = (count) => Number((count / 1e6).toPrecision(3));

/** As many as the server takes (vitrail.images.MAX_PIXELS). */
const MOST_PIXELS = 40e6;

/**
 * Paint over `blob`. Keys are heard from `listen(changed)` to `stop()`, and `changed()` is called after every stroke
 * and when a key changes a setting; strokes outlast both. In the mask that `mask()` gives, white is painted and black
 * is not; `soften` is the width of its edge in pixels.
 */
export async function paintable(blob) {
  const picture = await createImageBitmap(blob).catch(() => {
    throw new Error(t("notAPicture")); // the browser's own words are English, and say less
  });
  const { width, height } = picture;
  if (width * height > MOST_PIXELS) {
    picture.close();
    throw new Error(t("tooManyPixels", { size: `${width} × ${height}`, n: megapixels(width * height), most: megapixels(MOST_PIXELS) }));
  }
  const base = h("canvas", { width, height, role: "img" });
  base.getContext("2d").drawImage(picture, 0, 0);
  const over = h("canvas", { class: "strokes", width, height, "aria-hidden": "true" });
  const pen = over.getContext("2d");
  const tip = h("div", { class: "tip", hidden: true });
  const times = Math.max(1, Math.floor(512 / Math.max(width, height)));
  base.style.cssText = withinSight(width * times, height * times);
  const element = h("div", { class: "paint", tabindex: -1 }, base, over, tip);
  const state = { size: Math.max(8, Math.round(width / 8)), soften: 0, erase: false, on: false };
  let strokes = [],
    stroke = null,
    changed = () => {};

  const draw = (target, colour) => {
    for (const { points, size, erase } of strokes) {
      target.globalCompositeOperation = erase ? "destination-out" : "source-over";
      target.strokeStyle = colour;
      target.lineWidth = size;
      target.lineCap = target.lineJoin = "round";
      target.beginPath();
      target.moveTo(...points[0]);
      for (const point of points) target.lineTo(...point);
      target.stroke();
    }
  };
  const redraw = () => {
    pen.globalCompositeOperation = "source-over";
    pen.clearRect(0, 0, width, height);
    draw(pen, PAINT);
  };
  const scale = () => width / (base.getBoundingClientRect().width || width);
  const at = (event) => {
    const box = base.getBoundingClientRect();
    return [(event.clientX - box.left) * scale(), (event.clientY - box.top) * scale()];
  };
  const softened = () => {
    over.style.filter = state.soften ? `blur(${state.soften / scale() / 2}px)` : "";
  };

  element.addEventListener("pointerdown", (event) => {
    if (!state.on || event.button > 0) return;
    event.preventDefault();
    element.setPointerCapture(event.pointerId);
    stroke = { points: [at(event)], size: state.size, erase: state.erase };
    strokes.push(stroke);
    redraw();
  });
  element.addEventListener("pointermove", (event) => {
    const box = element.getBoundingClientRect();
    tip.hidden = !state.on || event.pointerType === "touch";
    tip.style.cssText = `left:${event.clientX - box.left - element.clientLeft}px;top:${event.clientY - box.top - element.clientTop}px;width:${state.size / scale()}px;height:${state.size / scale()}px`;
    if (stroke) {
      for (const one of event.getCoalescedEvents?.() ?? [event]) stroke.points.push(at(one));
      redraw();
    }
  });
  element.addEventListener("pointerleave", () => {
    tip.hidden = true;
  });
  const end = () => {
    if (stroke) {
      stroke = null;
      changed();
    }
  };
  element.addEventListener("pointerup", end);
  element.addEventListener("pointercancel", end);

  const set = (next) => {
    Object.assign(state, next);
    state.size = Math.min(SIZES.max, Math.max(SIZES.min, Math.round(state.size)));
    element.classList.toggle("paintable", state.on);
    softened();
    changed();
  };
  const undo = () => {
    strokes.pop();
    redraw();
    changed();
  };
  const keys = (event) => {
    if (!state.on || typing(event) || document.querySelector("dialog[open]")) return;
    if ((event.ctrlKey || event.metaKey) && event.key === "z") {
      event.preventDefault();
      undo();
    } else if (!singleKeys() || event.ctrlKey || event.metaKey) return;
    else if (event.key === "[" || event.key === "]")
      set({ size: event.key === "]" ? Math.max(state.size + 1, state.size * 1.2) : state.size / 1.2 });
    else if (event.key === "e") set({ erase: !state.erase });
  };

  return {
    element,
    state,
    set,
    undo,
    width,
    height,
    clear() {
      strokes = [];
      redraw();
      changed();
    },
    /** Where the middle of what is painted lies, from 0 at the left edge to 1; the picture's own where nothing is. */
    middle() {
      const across = strokes.filter((one) => !one.erase).flatMap((one) => one.points.map(([x]) => x / width));
      const [least, most] = across.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [1, 0]);
      return across.length ? Math.min(0.95, Math.max(0.05, (least + most) / 2)) : 0.5;
    },
    painted: () => strokes.some((one) => !one.erase),
    listen(told) {
      changed = told;
      base.setAttribute("aria-label", t("mask")); // in the language of now
      addEventListener("keydown", keys);
    },
    stop() {
      changed = () => {};
      removeEventListener("keydown", keys);
    },
    async mask() {
      const sheet = new OffscreenCanvas(width, height),
        target = sheet.getContext("2d");
      draw(target, "#fff");
      target.globalCompositeOperation = "destination-over"; // black behind it: grey where an edge is half there
      target.fillStyle = "#000";
      target.fillRect(0, 0, width, height);
      const { data } = target.getImageData(0, 0, width, height),
        grey = new Uint8ClampedArray(width * height);
      for (let i = 0; i < grey.length; i += 1) grey[i] = data[4 * i];
      return greyPng(soft(grey, width, height, state.soften), width, height);
    },
  };
}

/** Three passes of a mean over `2 * radius + 1` pixels are close to a Gaussian. */
function soft(values, width, height, edge) {
  const radius = Math.round(edge / 4);
  if (!radius) return values;
  let from = Float32Array.from(values);
  for (let pass = 0; pass < 3; pass += 1) {
    from = averaged(from, width, height, radius, 1, width);
    from = averaged(from, height, width, radius, width, 1);
  }
  return Uint8ClampedArray.from(from, Math.round);
}

function averaged(from, length, lines, radius, step, stride) {
  const to = new Float32Array(from.length);
  for (let line = 0; line < lines; line += 1) {
    const at = (i) => from[line * stride + step * Math.min(length - 1, Math.max(0, i))];
    let sum = 0;
    for (let i = -radius; i <= radius; i += 1) sum += at(i);
    for (let i = 0; i < length; i += 1) {
      to[line * stride + step * i] = sum / (2 * radius + 1);
      sum += at(i + radius + 1) - at(i - radius);
    }
  }
  return to;
}
