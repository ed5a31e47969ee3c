import * as api from "./api.js";
import { h, fill, tried } from "./dom.js";
import { t } from "./i18n.js";
import { ended, jobs, onJob } from "./jobs.js";
import { actions, detail } from "./picture.js";

const bar = (job) => job.steps ? h("progress", { max: job.steps, value: job.step }) : h("progress");
const eta = (job) => job.eta != null ? ` · ${Math.ceil(job.eta)} ${t("left")}` : "";

/** The list of jobs; `open` is called with the one that is clicked. */
export function queuePanel(open) {
  const list = h("div");
  const draw = () => {
    const all = [...jobs.values()];
    const waiting = all.filter((j) => j.state === "queued").sort((a, b) => a.position - b.position);
    const rows = [...all.filter((j) => j.state === "running"), ...waiting, ...all.filter(ended).reverse().slice(0, 6)];
    fill(list, rows.length ? rows.map((job) => h("div", { class: "job", "data-job": job.id, "data-state": job.state },
      h("span", { class: "t" }, job.title || job.request?.prompt || job.kind),
      h("span", { class: "row" }, h("small", {}, t(job.state) + (job.state === "running" ? eta(job) : "")),
        job.pictures.length ? h("button", { class: "chip", onclick: () => open(job) }, "▦") : null,
        waiting.indexOf(job) > 0 ? h("button", { class: "chip", "aria-label": t("up"), title: t("up"), onclick: () => tried(() => api.move(job.id, waiting[waiting.indexOf(job) - 1].id)) }, "↑") : null,
        ended(job) ? null : h("button", { class: "chip cancel", onclick: () => tried(() => api.cancel(job.id)) }, t("cancel"))),
      job.state === "running" ? bar(job) : null,
      job.error ? h("small", { class: "bad" }, job.error.message) : null)) : h("p", { class: "note" }, t("idle")));
  };
  draw();
  return { element: h("section", { class: "card", id: "queue" }, h("h2", {}, t("queue")), list), stop: onJob(draw) };
}

/** The large place for what is being made: a preview while it runs, then the picture with what to do next. */
export function stage(empty) {
  const element = h("section", { class: "stage", id: "stage", "aria-live": "polite" }, empty);
  let followed = null;
  const draw = (job, event) => {
    if (!followed) { if (ended(job)) return; followed = job.id; }
    if (job.id !== followed) return;
    if (job.state === "failed") return void fill(element, h("p", { class: "bad" }, job.error?.message ?? t("failed")));
    if (ended(job) || job.pictures.length) {
      if (!job.pictures.length) return void fill(element, h("p", {}, t(job.state)));
      return void fill(element, job.pictures.length === 1
        ? h("div", { class: "stack" }, h("img", { class: "result", src: api.file(job.pictures[0].id), alt: job.title }), actions(job.pictures[0]), hints(job))
        : h("div", { class: "stack", style: "width:100%" }, ended(job) ? null : bar(job), h("div", { class: "tiles many" }, job.pictures.map((p) =>
            h("button", { class: "tile", onclick: () => detail(p.id) }, h("img", { class: "result", src: api.file(p.id), alt: `${job.title} · ${p.seed}` })))), hints(job)));
    }
    let image = element.querySelector("img.preview");
    if (!image) fill(element, h("div", { class: "stack" }, (image = h("img", { class: "preview", alt: "", hidden: true })), h("div", { class: "live" }),
      h("button", { class: "cancel", onclick: () => tried(() => api.cancel(job.id)) }, t("cancel"))));
    if (event?.type === "preview") { image.hidden = false; image.src = api.preview(job.id, event.seq); }
    fill(element.querySelector(".live"), bar(job), h("small", {}, t(job.state) + eta(job)));
  };
  const stop = onJob(({ job, event }) => draw(job, event));
  const running = [...jobs.values()].find((job) => !ended(job));
  if (running) draw(running);
  return { element, stop, follow(job) { followed = job.id; element.replaceChildren(); draw(jobs.get(job.id) ?? job); } };
}
const hints = (job) => job.hints.map((hint) => h("p", { class: "note" }, hint));
