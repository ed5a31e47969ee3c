// The large place for what is being made: lit panes and previews while it runs, then the picture and what to do next.
import * as api from "./api.js";
import { fill, h, kept, tried } from "./dom.js";
import { progress, rose } from "./glass.js";
import { span, t } from "./i18n.js";
import { cancel, ended, jobs, onJob, running, stuck, titleOf, waitingFor } from "./jobs.js";
import { actions, detail, image } from "./picture.js";

/**
 * `title` and `hint` stand there while it is empty; `done(job)`, if given, shows a finished job its own way;
 * `mend(job)` gives the button that asks again for one that failed in a way that can succeed, or null; `back()`
 * gives one that leads from a job that came to no end to what it was to work on, or null.
 */
export function stage({ title, hint, done = null, mend = null, back = () => null, remember = "followed" }) {
  const element = h("section", { class: "pane stage", id: "stage", "aria-live": "polite" });
  let followed = null,
    live = null;

  const empty = () =>
    fill(element, h("div", { class: "empty" }, rose({ share: 1 }).element, h("h2", {}, title), h("p", {}, hint)));

  const drawLive = (job, event) => {
    if (!live || live.id !== job.id) live = liveView(job);
    if (!live.element.isConnected) fill(element, live.element);
    live.update(job, event);
  };
  const drawEnd = (job) => {
    live = null;
    if (job.pictures.length && done && job.state === "succeeded") return done(job);
    if (!job.pictures.length) {
      const told = h(
        "div",
        { class: "empty" },
        rose({ share: 0 }).element,
        h("p", { class: job.state === "failed" ? "bad" : "" }, job.error?.message ?? t(job.state)),
        back(),
      );
      if (mend && job.state === "failed")
        tried(async () => {
          const button = await mend(job);
          if (button) told.append(button);
        });
      return fill(element, told);
    }
    return fill(
      element,
      h("div", { class: "result-of" }, job.pictures.length === 1 ? single(job) : many(job), notes(job), back()),
    );
  };
  const draw = (job, event = null) => {
    if (job.id !== followed) return;
    if (ended(job)) drawEnd(job);
    else drawLive(job, event);
  };
  const follow = (job) => {
    followed = job.id;
    kept.set(remember, job.id, sessionStorage);
    draw(jobs.get(job.id) ?? job);
  };

  empty();
  const stop = onJob((job, event) => {
    if (!followed && !ended(job) && remember === "followed") follow(job);
    draw(job, event);
  });
  const again = kept.get(remember, sessionStorage);
  if (again) {
    followed = again;
    // Drawn when the page has its stage: what it does with a finished job (`done`) fills it.
    Promise.resolve(jobs.get(again) ?? api.job(again)).then(draw, () => {
      if (followed === again) followed = null;
    });
  } else if (remember === "followed" && running()[0]) follow(running()[0]);

  return {
    element,
    /** Show what was just asked for; on a phone it lies below the form. */
    follow(job) {
      follow(job);
      if (matchMedia("(max-width: 860px)").matches) element.scrollIntoView({ block: "start" });
    },
    /** Whether a job is shown, or will be as soon as it is known. */
    follows: () => Boolean(followed),
    /** Follow it no longer: something else stands here now. */
    release() {
      followed = live = null;
      kept.set(remember, null, sessionStorage);
    },
    stop,
    showPicture: (id) =>
      tried(async () => {
        followed = "";
        live = null;
        const picture = await api.picture(id);
        fill(
          element,
          h(
            "div",
            { class: "result-of" },
            image(picture),
            h("p", { class: "caption" }, picture.prompt),
            actions(picture),
          ),
        );
      }),
  };
}

function liveView(job) {
  const window_ = rose({ share: 0 });
  const picture = h("img", { class: "preview", alt: "", hidden: true });
  const bar = h("div", { class: "live" });
  return {
    id: job.id,
    element: h(
      "div",
      { class: "making" },
      h("div", { class: "frame" }, window_.element, picture),
      bar,
      h("button", { type: "button", class: "cancel", onclick: () => tried(() => cancel(job.id)) }, t("cancel")),
    ),
    update(now, event) {
      window_.lit(now.steps ? now.step / now.steps : 0);
      if (event?.type === "preview") {
        picture.src = api.preview(now.id, event.seq);
        picture.onload = () => {
          picture.hidden = false;
          window_.element.style.display = "none";
        };
      }
      const where =
        now.state === "queued"
          ? waitingFor(now.position)
          : now.steps
            ? t("step", { step: now.step, steps: now.steps })
            : t("gettingReady");
      fill(
        bar,
        !stuck(now) && progress(now),
        h("p", {}, [where, now.eta != null && t("left", { time: span(now.eta) })].filter(Boolean).join(" · ")),
        stuck(now) && h("p", { class: "note" }, t("noWorker")),
      );
    },
  };
}

const single = (job) => [image({ ...job.pictures[0], prompt: titleOf(job) }), actions({ ...job.pictures[0], kind: job.kind })];

const many = (job) =>
  h(
    "div",
    { class: "tiles" },
    job.pictures.map((picture) =>
      h(
        "button",
        {
          type: "button",
          class: "tile",
          onclick: () => detail(picture.id, { siblings: job.pictures.map((one) => one.id) }),
        },
        h("img", { class: "result", src: api.file(picture.id), alt: `${titleOf(job)} · ${picture.seed}` }),
      ),
    ),
  );

const notes = (job) => job.hints.map((line) => h("p", { class: "note" }, line));
