// Pictures side by side: every combination of two settings, and the way between two prompts.
import * as api from "./api.js";
import { h, fill, toast, tried } from "./dom.js";
import { EXAMPLES, lang, t } from "./i18n.js";
import { jobs, onJob, submit } from "./jobs.js";
import { stage } from "./queue.js";

const AXES = ["cfg_scale", "steps", "seed", "style", "sampler", "schedule", "shift"];
const NUMBERS = new Set(["cfg_scale", "steps", "seed", "shift"]);
const read = (axis, text) => text.split(",").map((s) => s.trim()).filter(Boolean).map((s) => (NUMBERS.has(axis.value) ? Number(s) : s));
const choose = (label, id, value) => { const e = h("select", { id }, AXES.map((a) => h("option", { value: a, selected: a === value }, a.replaceAll("_", " ")))); return [e, h("div", {}, h("label", { for: id }, label), e)]; };

export function plotView(main) {
  const prompt = h("textarea", { id: "prompt", value: EXAMPLES[lang][1] });
  const [x, xField] = choose(t("axisX"), "x", "cfg_scale"), [y, yField] = choose(t("axisY"), "y", "style");
  const xs = h("input", { id: "xs", value: "1, 3, 6", "aria-label": `${t("axisX")}: ${t("values")}` }), ys = h("input", { id: "ys", value: "noto, twemoji", "aria-label": `${t("axisY")}: ${t("values")}` });
  const out = h("section", { class: "card", style: "overflow:auto" });
  let cells = new Map();
  const draw = (job) => { const cell = cells.get(job?.id); if (cell) fill(cell, job.pictures[0] ? h("img", { src: api.thumbnail(job.pictures[0].id), alt: job.title, style: "width:160px;border-radius:6px" }) : job.error ? h("small", { class: "bad" }, job.error.message) : t(job.state)); };
  const start = () => tried(async () => {
    const across = read(x, xs.value), down = read(y, ys.value);
    if (across.length * down.length > 64) return toast("64");
    cells = new Map();
    const seed = crypto.getRandomValues(new Uint32Array(1))[0], body = h("tbody");
    fill(out, h("table", {}, h("thead", {}, h("tr", {}, h("th"), across.map((v) => h("th", {}, `${x.value} ${v}`)))), body));
    for (const b of down) {
      const row = h("tr", {}, h("th", {}, `${y.value} ${b}`));
      body.append(row);
      for (const a of across) { const cell = h("td"); row.append(cell); const job = await submit({ kind: "text_to_image", prompt: prompt.value, seed, [x.value]: a, [y.value]: b }); cells.set(job.id, cell); draw(jobs.get(job.id)); }
    }
  });
  fill(main, h("div", { class: "two" }, h("section", { class: "card stack" }, h("div", {}, h("label", { for: "prompt" }, t("prompt")), prompt),
    xField, xs, yField, ys, h("small", {}, t("values")), h("button", { class: "main", onclick: start }, t("run"))), out));
  return onJob(({ job }) => draw(job));
}

export function walkView(main) {
  const from = h("input", { id: "from", value: EXAMPLES[lang][1] }), to = h("input", { id: "to", value: EXAMPLES[lang][4] });
  const frames = h("input", { id: "frames", type: "number", min: 2, max: 60, value: 12 });
  const image = h("img", { alt: "" }), slide = h("input", { type: "range", min: 0, max: 0, value: 0, style: "width:min(512px,100%)", "aria-label": t("place"), oninput: () => show() });
  const waiting = stage(h("p", { class: "note" }, t("place")));
  let wanted = null, ids = [];
  const show = () => { if (ids.length) image.src = api.file(ids[slide.value]); };
  const draw = (job) => {
    if (job.id !== wanted || job.state !== "succeeded") return;
    ids = job.pictures.map((p) => p.id); slide.max = ids.length - 1;
    fill(waiting.element, h("div", { class: "stack" }, image, slide)); show();
  };
  const stop = onJob(({ job }) => draw(job));
  const start = () => tried(async () => { const job = await submit({ kind: "walk", stops: [{ prompt: from.value, seed: 1 }, { prompt: to.value, seed: 2 }], frames: Number(frames.value) }); wanted = job.id; waiting.follow(job); });
  fill(main, h("div", { class: "two" }, h("section", { class: "card stack" }, [["from", from], ["to", to], ["frames", frames]].map(([k, e]) => h("div", {}, h("label", { for: k }, t(k)), e)),
    h("button", { class: "main", onclick: start }, t("run"))), waiting.element));
  return () => { stop(); waiting.stop(); };
}
