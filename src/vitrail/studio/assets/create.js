import * as api from "./api.js";
import { h, fill, tried } from "./dom.js";
import { EXAMPLES, lang, t } from "./i18n.js";
import { submit } from "./jobs.js";
import { queuePanel, stage } from "./queue.js";

let values = { n: 1 };
export const fillForm = (settings) => { values = { n: 1, ...settings }; };
let about;
const load = () => (about ??= Promise.all([api.form(), api.models()]).catch((error) => { about = undefined; throw error; }));

// What stands above the fold; everything else comes from the schema, with its own help texts.
const PLAIN = new Set(["prompt", "style", "n", "seed", "model", "lora", "control", "embedding", "guidance_interval"]);

export function createView(main) {
  const form = h("form", { class: "card stack", onsubmit: (event) => { event.preventDefault(); start(); } });
  const shown = stage(h("div", { class: "note" }, h("p", {}, t("hint")), h("p", {}, t("dropHint"))));
  const queue = queuePanel((job) => shown.follow(job));
  fill(main, h("div", { class: "two" }, h("div", { class: "stack" }, form, queue.element), shown.element));
  const start = () => tried(async () => {
    const request = { kind: "text_to_image", ...Object.fromEntries(Object.entries(values).filter(([, v]) => v !== "" && v != null)) };
    shown.follow(await submit(request));
  });
  const draw = ({ fields, samplers, schedules }, models) => {
    const set = (name, value) => { if (value == null || value === "") delete values[name]; else values[name] = value; };
    const prompt = h("textarea", { id: "prompt", value: values.prompt ?? "", maxlength: 2000, required: true, placeholder: EXAMPLES[lang][0],
      oninput: (e) => set("prompt", e.target.value), onkeydown: (e) => { if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) { e.preventDefault(); form.requestSubmit(); } } });
    const model = models.find((m) => m.name === (values.model ?? "default"));
    const chips = (name, label, choices) => h("div", { class: "row", role: "group", "aria-label": t(label) }, choices.map(([value, text]) =>
      h("button", { type: "button", class: "chip", "aria-pressed": String((values[name] ?? "") === value), onclick: (e) => {
        set(name, value);
        for (const other of e.target.parentElement.children) other.setAttribute("aria-pressed", String(other === e.target));
      } }, text)));
    const seed = h("input", { id: "seed", inputmode: "numeric", value: values.seed ?? "", placeholder: t("random"),
      oninput: (e) => set("seed", /^\d+$/.test(e.target.value) ? Number(e.target.value) : null) });
    fill(form,
      h("div", {}, h("label", { for: "prompt" }, t("prompt")), prompt),
      h("div", { class: "row" }, h("small", {}, t("example")), EXAMPLES[lang].slice(0, 4).map((text) =>
        h("button", { type: "button", class: "chip", onclick: () => { prompt.value = text; set("prompt", text); prompt.focus(); } }, text))),
      model?.styles?.length ? h("div", {}, h("span", { class: "label" }, t("style")), chips("style", "style", [["", t("anyStyle")], ...model.styles.map((s) => [s, s])])) : null,
      h("div", { class: "grid2" },
        h("div", {}, h("span", { class: "label" }, t("count")), chips("n", "count", [1, 2, 4, 8].map((n) => [n, String(n)]))),
        h("div", {}, h("label", { for: "seed" }, t("seed")), h("div", { class: "row", style: "flex-wrap:nowrap" }, seed,
          h("button", { type: "button", "aria-label": t("dice"), title: t("dice"), onclick: () => { seed.value = crypto.getRandomValues(new Uint32Array(1))[0]; set("seed", Number(seed.value)); } }, "⚄")))),
      h("div", {}, h("label", { for: "model" }, t("model")), h("select", { id: "model", onchange: (e) => { set("model", e.target.value); draw({ fields, samplers, schedules }, models); } },
        models.filter((m) => m.here && !m.catalogue && !m.problem).map((m) => h("option", { value: m.name, selected: m.name === (values.model ?? "default") }, m.name)))),
      h("details", {}, h("summary", {}, t("advanced")), h("div", { class: "stack" }, fields.filter((f) => !PLAIN.has(f.name)).map((f) => field(f, { sampler: samplers, schedule: schedules }[f.name], set)))),
      h("button", { class: "main", id: "go" }, t("go")));
  };
  tried(async () => draw(...(await load())));
  return () => { shown.stop(); queue.stop(); };
}

function field(f, labels, set) {
  const id = `f-${f.name}`, now = values[f.name];
  let control;
  if (typeof f.default === "boolean") control = h("input", { id, type: "checkbox", checked: now ?? f.default, onchange: (e) => set(f.name, e.target.checked) });
  else if (f.choices.length) control = h("select", { id, onchange: (e) => set(f.name, e.target.value) },
    h("option", { value: "" }, "–"), f.choices.map((c) => h("option", { value: c, selected: c === now }, labels?.[c] ?? c)));
  else if (f.low != null || f.high != null) control = h("input", { id, type: "number", step: "any", min: f.low, max: f.high, value: now ?? "", placeholder: f.default ?? "",
    onchange: (e) => set(f.name, e.target.value === "" ? null : Number(e.target.value)) });
  else control = h("input", { id, value: now ?? "", oninput: (e) => set(f.name, e.target.value) });
  return h("div", {}, h("label", { for: id }, f.name.replaceAll("_", " ")), control, h("small", {}, lang === "zh" ? f.zh : f.en));
}
