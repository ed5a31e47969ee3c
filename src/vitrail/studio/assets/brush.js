// A picture with a brush over it. Strokes are kept as lines, so undo is exact and the mask has the picture's own size.
import { h } from "./dom.js";
import { t } from "./i18n.js";
import { typing } from "./keys.js";
import { singleKeys } from "./keys.js";

const PAINT = "#e0304e";
const SIZES = { min: 2, max: 160 };

/**
 * Paint over `blob`. `changed()` is called after every stroke and when a key changes a setting.
 * In the mask that `mask()` gives, white is painted and black is not; `soften` is the width of its edge in pixels.
 */
export async function paintable(blob, { changed = () => {} } = {}) {
  const picture = await createImageBitmap(blob);
  const { width, height } = picture;
  const base = h("canvas", { width, height, "aria-label": t("mask"), role: "img" });
  base.getContext("2d").drawImage(picture, 0, 0);
  const over = h("canvas", { class: "strokes", width, height, "aria-hidden": "true" });
  const pen = over.getContext("2d");
  const tip = h("div", { class: "tip", hidden: true });
  const times = Math.max(1, Math.floor(512 / Math.max(width, height)));
  base.style.width = `min(${width * times}px, ${(66 * width) / height}vh)`;
  const element = h("div", { class: "paint", tabindex: -1 }, base, over, tip);
  const state = { size: Math.max(8, Math.round(width / 8)), soften: 0, erase: false, on: false };
  let strokes = [],
    stroke = null;

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
  addEventListener("keydown", keys);

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
    painted: () => strokes.some((one) => !one.erase),
    stop: () => removeEventListener("keydown", keys),
    async mask() {
      const sheet = new OffscreenCanvas(width, height),
        target = sheet.getContext("2d");
      draw(target, "#fff");
      const pixels = target.getImageData(0, 0, width, height);
      const alpha = soft(
        pixels.data.filter((_, i) => i % 4 === 3),
        width,
        height,
        state.soften,
      );
      for (let i = 0; i < alpha.length; i += 1) pixels.data.set([alpha[i], alpha[i], alpha[i], 255], 4 * i);
      target.putImageData(pixels, 0, 0);
      return sheet.convertToBlob({ type: "image/png" });
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
