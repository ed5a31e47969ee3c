// A picture with a brush over it: strokes are kept as lines, so undo is exact and the mask is drawn at full size.
import { h } from "./dom.js";

export async function canvasOf(blob, slider) {
  const picture = await createImageBitmap(blob);
  const canvas = h("canvas", { width: picture.width, height: picture.height, tabindex: 0, "aria-label": "mask" });
  const pen = canvas.getContext("2d");
  let strokes = [], stroke = null, size = Number(slider.value);
  const line = (on, colour) => { for (const s of strokes) { on.strokeStyle = on.fillStyle = colour; on.lineWidth = s.size; on.lineCap = on.lineJoin = "round"; on.beginPath(); on.moveTo(...s.points[0]); for (const p of s.points) on.lineTo(...p); on.stroke(); } };
  const draw = () => {
    const over = new OffscreenCanvas(canvas.width, canvas.height);
    line(over.getContext("2d"), "#d83a56");
    pen.drawImage(picture, 0, 0);
    pen.globalAlpha = 0.55; pen.drawImage(over, 0, 0); pen.globalAlpha = 1;
  };
  const at = (event) => { const box = canvas.getBoundingClientRect(); return [(event.clientX - box.left) * canvas.width / box.width, (event.clientY - box.top) * canvas.height / box.height]; };
  const scaled = () => size * canvas.width / canvas.getBoundingClientRect().width;
  canvas.onpointerdown = (e) => { canvas.setPointerCapture(e.pointerId); stroke = { size: scaled(), points: [at(e)] }; strokes.push(stroke); draw(); };
  canvas.onpointermove = (e) => { if (stroke) { stroke.points.push(at(e)); draw(); } };
  canvas.onpointerup = canvas.onpointercancel = () => { stroke = null; };
  const undo = () => { strokes.pop(); draw(); };
  const keys = (e) => {
    if (/^(TEXTAREA|INPUT|SELECT)$/.test(e.target.tagName) && e.target.type !== "range") return;
    if (e.key === "[" || e.key === "]") { slider.value = size = Math.min(128, Math.max(2, size * (e.key === "]" ? 1.25 : 0.8))); }
    if ((e.ctrlKey || e.metaKey) && e.key === "z") { e.preventDefault(); undo(); }
  };
  addEventListener("keydown", keys);
  draw();
  return {
    element: h("div", { class: "paint" }, canvas), undo, clear() { strokes = []; draw(); }, painted: () => strokes.length > 0,
    setSize(next) { size = next; }, stop: () => removeEventListener("keydown", keys),
    mask() { const m = new OffscreenCanvas(canvas.width, canvas.height), on = m.getContext("2d"); on.fillStyle = "#000"; on.fillRect(0, 0, m.width, m.height); line(on, "#fff"); return m.convertToBlob({ type: "image/png" }); },
  };
}
