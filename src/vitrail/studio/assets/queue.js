// The queue: what runs, what waits and in which order, and what has just ended. It stands beside every page.
import * as api from "./api.js";
import { fill, h, tried } from "./dom.js";
import { progress } from "./glass.js";
import { lang, span, t } from "./i18n.js";
import { icon } from "./icons.js";
import { cancel, ended, jobs, move, onAttended, onJob, running, titleOf, unattended, waiting, waitingFor } from "./jobs.js";
import { detail } from "./picture.js";

const PAST = 6;
const LONG = { train: "train", evaluate: "evaluate" };

function state(job, before) {
  if (job.state === "queued") return waitingFor(before);
  if (job.state === "cancelled" && job.kind === "train") return t("run_stopped"); // it can go on
  if (job.state !== "running") return t(job.state);
  return [
    // One of the two: beside the menu there is no room for both, and a bar under it shows that it runs.
    job.eta != null ? t("left", { time: span(job.eta) }) : t(LONG[job.kind] ? "working" : "running"),
    job.attempts > 1 && t("retried"),
  ]
    .filter(Boolean)
    .join(" · ");
}

function open(job) {
  if (LONG[job.kind]) location.hash = `${LONG[job.kind]}/${job.id}`;
  else if (job.pictures.length) detail(job.pictures[0].id, { siblings: job.pictures.map((picture) => picture.id) });
}

/** What a row's buttons depend on; as long as it stays the same, the row itself stays and only its figures move. */
const shape = (job, line) =>
  JSON.stringify([lang, job.state, line.indexOf(job), line.length, job.pictures.length, job.error]);

function update(element, job, line) {
  element.querySelector(".what small").textContent = state(job, line.indexOf(job));
  const bar = element.querySelector("progress");
  if (bar && job.steps) {
    bar.max = job.steps;
    bar.value = job.step;
  }
}

function row(job, line) {
  const place = line.indexOf(job);
  const button = (name, label, work) =>
    h(
      "button",
      {
        type: "button",
        class: "quiet small",
        "aria-label": `${label}: ${titleOf(job)}`,
        title: label,
        onclick: () => tried(work),
      },
      icon(name),
    );
  const shown = job.pictures.at(-1);
  return h(
    "li",
    { class: "job", "data-job": job.id, "data-state": job.state },
    h(
      "button",
      {
        type: "button",
        class: "what",
        disabled: !shown && !LONG[job.kind],
        title: titleOf(job),
        "aria-label": `${t("openResult")}: ${titleOf(job)}`,
        onclick: () => open(job),
      },
      h(
        "span",
        { class: "glass" },
        shown
          ? h("img", { src: api.thumbnail(shown.id), alt: "", loading: "lazy" })
          : LONG[job.kind]
            ? icon(LONG[job.kind])
            : null,
      ),
      h("span", { class: "t" }, titleOf(job)),
      h("small", {}, state(job, place)),
    ),
    h(
      "span",
      { class: "do" },
      place > 0 ? button("up", t("up"), () => move(job.id, line[place - 1].id)) : null,
      place >= 0 && place < line.length - 1
        ? button("down", t("down"), () => move(job.id, line[place + 2]?.id ?? null))
        : null,
      ended(job)
        ? null
        : h(
            "button",
            {
              type: "button",
              class: "quiet small cancel",
              "aria-label": `${t("cancel")}: ${titleOf(job)}`,
              title: t("cancel"),
              onclick: () => tried(() => cancel(job.id)),
            },
            icon("close"),
          ),
    ),
    job.state === "running" ? progress(job) : null,
    job.error ? h("small", { class: "bad" }, job.error.message) : null,
  );
}

export function queuePanel() {
  const list = h("ol", { class: "jobs" }),
    drawn = new Map(); // job's id -> its row and the shape that it has
  const count = h("b", { class: "count", hidden: true });
  const alone = h("p", { class: "note", role: "status", hidden: true });
  const heading = h("b", { class: "count", hidden: true });
  const element = h(
    "section",
    { id: "queue", "aria-label": t("queue") },
    h(
      "div",
      { class: "label-row" },
      h("h2", {}, t("queue"), heading),
      h(
        "button",
        {
          type: "button",
          class: "quiet small only-phone",
          "aria-label": t("close"),
          onclick: () => element.classList.remove("open"),
        },
        icon("close"),
      ),
    ),
    alone,
    list,
  );
  let asked = false;
  const draw = () => {
    asked = false;
    const line = waiting(),
      busy = running().length + line.length;
    const past = [...jobs.values()]
      .filter(ended)
      .sort((a, b) => b.created.localeCompare(a.created))
      .slice(0, PAST);
    const shown = [...running(), ...line, ...past];
    // A row that is pressed must not be put in another's place under the finger, nor lose its focus.
    const focused = document.activeElement?.closest?.("#queue .job")?.dataset.job;
    const rows = shown.map((job) => {
      const before = drawn.get(job.id),
        now = shape(job, line);
      if (before?.shape !== now) drawn.set(job.id, { element: row(job, line), shape: now });
      update(drawn.get(job.id).element, job, line);
      return drawn.get(job.id).element;
    });
    for (const id of [...drawn.keys()]) if (!shown.some((job) => job.id === id)) drawn.delete(id);
    if (!rows.length) fill(list, h("li", { class: "note" }, t("idle")));
    else if (rows.length !== list.children.length || rows.some((one, i) => one !== list.children[i])) fill(list, rows);
    if (focused && !document.activeElement?.closest?.("#queue"))
      drawn.get(focused)?.element.querySelector(".do button, .what:enabled")?.focus();
    alone.hidden = !unattended;
    alone.textContent = unattended ? t("noWorker") : "";
    for (const badge of [count, heading]) {
      badge.hidden = busy === 0;
      badge.textContent = busy;
    }
  };
  draw();
  const soon = () => {
    if (!asked) {
      asked = true;
      requestAnimationFrame(draw);
    }
  };
  const stops = [onJob(soon), onAttended(soon)];
  return { element, count, stop: () => stops.forEach((stop) => stop()), openOnPhone: () => element.classList.toggle("open") };
}
