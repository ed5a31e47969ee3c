// One training: how far it is, its curves and samples, stop, go on, draw with it.
import * as api from "./api.js";
import { charts } from "./curves.js";
import { fill, h, kept, toast, tried } from "./dom.js";
import { kindName, span, t, when } from "./i18n.js";
import { icon } from "./icons.js";
import { cancel, ended, jobs, onJob, stuck, submit, waitingFor } from "./jobs.js";
import { logBox } from "./log.js";
import { forgetModels } from "./shelf.js";

const AGAIN_MS = 4000;
const SOON_MS = 1200;

/** How a training stands that has no folder yet. */
const stands = (job) =>
  !job || job.state === "queued" ? waitingFor(job?.position) : t(job.state === "running" ? "preparing" : job.state);

/** A run by its id, or by its name while its folder is still to come (`run:NAME`). */
export function showRun(body, asked, drawList) {
  let gone = false,
    timer,
    drawn = null,
    drawnAt = 0,
    shape = null,
    line = null,
    bar = null,
    name = asked.startsWith("run:") ? asked.slice(4) : null,
    id = name ? null : asked;
  const head = h("div", { class: "stack" }),
    curves = h("div", { class: "curves" }),
    grids = h("div", { class: "stack" }),
    log = logBox();
  const recipe = h("details", {}, h("summary", {}, t("recipe")), h("pre"));
  fill(body, head, curves, grids, log.element, recipe);
  const names = { loss: t("loss"), images_per_second: t("speed"), learning_rate: t("learningRate") };
  Object.assign(names, { mse: t("mse"), "held_out/mse": t("mseHeldOut") });
  const latestJob = () =>
    [...jobs.values()]
      .filter((job) => job.kind === "train" && job.request?.run === name)
      .sort((a, b) => b.created.localeCompare(a.created))[0];

  const draw = async () => {
    drawnAt = performance.now();
    if (jobs.has(asked)) name = jobs.get(asked).request.run; // the queue names a job
    id = jobs.has(asked) || !id ? (await drawList()).find((one) => one.name === name)?.id : id;
    const run = id ? await api.run(id) : null;
    name = run?.name ?? name;
    const job = latestJob(),
      going = job && !ended(job);
    const stop = () =>
      going
        ? h(
            "button",
            { type: "button", class: "cancel", onclick: () => tried(() => cancel(job.id)) },
            icon(job.state === "queued" ? "close" : "pause"),
            t(job.state === "queued" ? "cancel" : "stopRun"),
          )
        : null;
    recipe.hidden = !run;
    if (!run) {
      shape = null;
      return fill(
        head,
        h("h2", {}, name ?? t("train")),
        h(
          "p",
          { class: job?.error ? "bad" : "" },
          job?.error?.message ?? stands(job),
        ),
        job && stuck(job) ? h("p", { class: "note" }, t("noWorker")) : null,
        job?.state === "running" ? h("progress", { "aria-label": name }) : null,
        h("div", { class: "row" }, stop()),
      );
    }
    // The head stays as long as it says the same, so that its buttons keep their focus; figures move in it.
    const now = JSON.stringify([run.id, run.state, run.use, going && job.id, job?.state, job?.error]);
    if (now !== shape) {
      shape = now;
      drawHead(run, job, going, stop);
    }
    bar.value = run.share;
    line.textContent = [
      run.until
        ? t("seenOf", { n: run.images.toLocaleString(), all: run.until.toLocaleString() })
        : t("seen", { n: run.images.toLocaleString() }),
      run.seconds && span(run.seconds),
      going && job.eta != null && t("left", { time: span(job.eta) }),
    ]
      .filter(Boolean)
      .join(" · ");
    const key = JSON.stringify([run.images, run.samples.length]);
    if (key !== drawn) {
      drawn = key;
      charts(curves, run.figures, names);
      samples(run);
      recipe.lastChild.textContent = run.recipe;
    }
    return undefined;
  };
  const drawHead = (run, job, going, stop) => {
    bar = h("progress", { max: 1, value: run.share, "aria-label": run.name });
    line = h("p");
    fill(
      head,
      h(
        "div",
        { class: "row" },
        h("h2", {}, run.name),
        h(
          "span",
          { class: run.state === "finished" ? "badge here" : "badge" },
          t(job?.state === "queued" ? "queued" : `run_${going ? "running" : run.state}`),
        ),
      ),
      h(
        "p",
        { class: "note" },
        [kindName(run.kind), run.source, when(run.changed * 1000)].filter(Boolean).join(" · "),
      ),
      bar,
      line,
      job?.error ? h("p", { class: "bad" }, job.error.message) : null,
      h(
        "div",
        { class: "row" },
        stop(),
        run.state === "stopped" && !going
          ? h(
              "button",
              {
                type: "button",
                onclick: () =>
                  tried(async () => {
                    await submit({ kind: "train", run: run.name, recipe: run.recipe });
                    toast(t("started"));
                    await draw();
                  }),
              },
              icon("play"),
              t("resumeRun"),
            )
          : null,
        run.use && !going
          ? h(
              "button",
              {
                type: "button",
                class: "main",
                onclick: () =>
                  tried(async () => {
                    const added = await api.keepModel(run.id);
                    forgetModels();
                    if (run.use === "codebook") kept.set("codebook", added.name);
                    location.hash = run.use === "create" ? `create/${encodeURIComponent(added.name)}` : run.use;
                  }),
              },
              icon(run.use),
              t(`try_${run.use}`),
            )
          : null,
      ),
    );
  };
  // Made once and then filled, so that the slider stays under the finger while new samples arrive.
  const image = h("img", { class: "sheet", alt: t("samples") }),
    seen = h("output"),
    range = h("input", {
      type: "range",
      min: 0,
      "aria-label": t("samples"),
      oninput: () => {
        latest = range.value === range.max;
        show();
      },
    });
  let shots = [],
    latest = true;
  const show = () => {
    const name = shots[Number(range.value)];
    const src = api.runSample(id, name);
    if (image.getAttribute("src") !== src) image.src = src;
    seen.textContent = t("seen", { n: Number(/\d+/.exec(name)?.[0] ?? 0).toLocaleString() });
  };
  const samples = (run) => {
    if (run.samples.length === shots.length) return;
    shots = run.samples;
    if (!shots.length) fill(grids);
    else if (!image.isConnected)
      fill(grids, h("div", { class: "label-row" }, h("h3", {}, t("samples")), seen), range, image);
    if (!shots.length) return;
    range.max = shots.length - 1;
    range.hidden = shots.length < 2;
    if (latest) range.value = range.max;
    show();
  };
  const loop = async () => {
    if (gone) return;
    await tried(draw);
    timer = setTimeout(loop, AGAIN_MS);
  };
  loop();
  const stop = onJob((job, event) => {
    if (job.kind !== "train" || job.request?.run !== name) return;
    if (event?.message) log.add(event.message);
    if (ended(job)) {
      forgetModels();
      tried(draw);
      tried(drawList);
    } else if (event && performance.now() - drawnAt > SOON_MS) tried(draw); // somebody watches
  });
  return () => {
    gone = true;
    clearTimeout(timer);
    stop();
  };
}
