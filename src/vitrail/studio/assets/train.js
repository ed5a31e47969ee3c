// Training: a folder, a look at it, a recipe; then the curves and samples of a run, stop, go on, try the model.
import * as api from "./api.js";
import { labelled, select } from "./controls.js";
import { charts } from "./curves.js";
import { fill, h, toast, tried } from "./dom.js";
import { folderPicker, lookThrough } from "./folder.js";
import { rose } from "./glass.js";
import { span, t, when } from "./i18n.js";
import { icon } from "./icons.js";
import { cancel, ended, jobs, onJob, submit } from "./jobs.js";
import { forgetModels } from "./shelf.js";

const AGAIN_MS = 4000;

export function trainView(main, chosen) {
  let gone = false, timer;
  const list = h("ul", { class: "runs" }), body = h("section", { class: "pane stack" });
  const open = (id) => { location.hash = id ? `train/${id}` : "train"; };

  const drawList = async () => {
    const runs = await api.runs();
    fill(list, runs.map((run) => h("li", {}, h("a", { href: `#train/${run.id}`, "aria-current": run.id === chosen ? "page" : null },
      h("b", {}, run.name), h("small", {}, `${t(`run_${run.state}`)} · ${t("seen", { n: run.images.toLocaleString() })}`),
      h("progress", { max: 1, value: run.share, "aria-label": run.name })))), runs.length ? null : h("li", { class: "note" }, t("noRuns")));
    return runs;
  };

  fill(main, h("div", { class: "panes list" },
    h("section", { class: "pane stack" }, h("div", { class: "page-head" }, h("h2", {}, t("train")), h("p", {}, t("trainHint"))),
      h("button", { type: "button", class: "main", onclick: () => open("") }, icon("plus"), t("newRun")), h("h3", {}, t("runs")), list),
    body));

  const again = async () => {
    if (gone) return;
    await tried(drawList);
    timer = setTimeout(again, AGAIN_MS);
  };
  again();
  const stop = chosen ? showRun(body, chosen, drawList) : newRun(body, open, () => gone);
  return () => { gone = true; clearTimeout(timer); stop(); };
}

function newRun(body, open, left) {
  const found = h("div", { class: "stack" }), recipes = h("div"), name = h("input", { id: "run-name", placeholder: t("nameHint"), pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]{0,60}" });
  const length = h("input", { id: "run-images", type: "number", min: 100, step: 100, placeholder: t("lengthHint") });
  const picker = folderPicker(t("folder"));
  let recipe = "";
  const look = () => tried(async () => {
    if (!picker.value()) return toast(t("needFolder"), { bad: true });
    return lookThrough(found, picker.value(), left);
  });
  const start = () => tried(async () => {
    const data = picker.value();
    if (!data && !recipe) return toast(t("needFolder"), { bad: true });
    const job = await submit({ kind: "train", ...(data && { data }), ...(recipe && { recipe }), ...(name.value.trim() && { name: name.value.trim() }),
      ...(length.value && { set: [`optim.until_images=${Math.round(Number(length.value))}`] }) });
    toast(t("started"));
    open(job.id);
    return undefined;
  });
  fill(body, h("h2", {}, t("newRun")),
    picker.element, h("div", { class: "row" }, h("button", { type: "button", id: "look", onclick: look }, icon("search"), t("look"))), found,
    recipes, h("div", { class: "pair" }, labelled(t("runName"), name), labelled(t("runLength"), length)),
    h("div", { class: "row" }, h("button", { type: "button", class: "main", id: "go", onclick: start }, icon("train"), t("startRun"))));
  tried(async () => {
    const rows = await api.recipes();
    const about = h("small", {}, t("suggested"));
    const choice = select([["", t("recipeAuto")], ...rows.map((one) => [one.file, `${one.file.replace(/\.toml$/, "")} (${one.kind.replaceAll("_", " ")})`])], "", (value) => {
      recipe = value;
      about.textContent = value ? rows.find((one) => one.file === value).about : t("suggested");
    }, { id: "recipe" });
    fill(recipes, labelled(t("recipe"), choice), about);
  });
  return () => {};
}

function showRun(body, asked, drawList) {
  let id = asked, gone = false, timer, drawn = null, place = null;
  const head = h("div", { class: "stack" }), curves = h("div", { class: "curves" }), grids = h("div", { class: "stack" }), log = h("div", { class: "log", role: "log", hidden: true });
  const recipe = h("details", {}, h("summary", {}, t("recipe")));
  fill(body, head, curves, grids, log, recipe);
  const names = { loss: t("loss"), images_per_second: t("speed"), learning_rate: t("learningRate") };
  const jobOf = (run) => [...jobs.values()].filter((job) => job.kind === "train" && (job.id === asked || job.request?.run === run?.name || job.request?.name === run?.name)).sort((a, b) => b.created.localeCompare(a.created))[0];

  const draw = async () => {
    const job = jobs.get(asked);
    if (job) id = await runOf(job);
    if (!id) return fill(head, waitingHead(job));
    const run = await api.run(id), now = jobOf(run);
    const going = now && !ended(now);
    fill(head,
      h("div", { class: "row" }, h("h2", {}, run.name), h("span", { class: run.state === "finished" ? "badge here" : "badge" }, t(`run_${run.state}`))),
      h("p", { class: "note" }, [run.kind.replaceAll("_", " "), run.source, when(run.changed * 1000)].filter(Boolean).join(" · ")),
      h("progress", { max: 1, value: run.share, "aria-label": run.name }),
      h("p", {}, [t("seen", { n: run.images.toLocaleString() }), run.until && t("ofAll", { n: run.until.toLocaleString() }), run.seconds && span(run.seconds), going && now.eta != null && t("left", { time: span(now.eta) })].filter(Boolean).join(" · ")),
      now?.error ? h("p", { class: "bad" }, now.error.message) : null,
      h("div", { class: "row" },
        going ? h("button", { type: "button", class: "cancel", onclick: () => tried(() => cancel(now.id)) }, icon("pause"), t("stopRun")) : null,
        run.state === "stopped" && now && !going ? h("button", { type: "button", onclick: () => tried(async () => { await submit(now.request); toast(t("started")); }) }, icon("play"), t("resumeRun")) : null,
        run.model ? h("a", { class: "button main", href: `#create/${encodeURIComponent(run.model)}`, onclick: forgetModels }, icon("create"), t("tryModel")) : null));
    const key = JSON.stringify([run.images, run.samples.length]);
    if (key !== drawn) {
      drawn = key;
      charts(curves, run.figures, names);
      samples(run);
      fill(recipe, h("summary", {}, t("recipe")), h("pre", {}, run.recipe));
    }
    return undefined;
  };
  const samples = (run) => {
    if (!run.samples.length) return fill(grids);
    const last = run.samples.length - 1;
    if (place == null || place.end) place = { at: last, end: true };
    const image = h("img", { class: "sheet", alt: t("samples") }), out = h("output");
    const show = (at) => { image.src = api.runSample(run.id, run.samples[at]); out.textContent = t("seen", { n: Number(/\d+/.exec(run.samples[at])?.[0] ?? 0).toLocaleString() }); };
    const range = h("input", { type: "range", min: 0, max: last, value: place.at, "aria-label": t("samples"), oninput: () => { place = { at: Number(range.value), end: Number(range.value) === last }; show(place.at); } });
    show(Math.min(place.at, last));
    return fill(grids, h("div", { class: "label-row" }, h("h3", {}, t("samples")), out), last ? range : null, image);
  };
  const waitingHead = (job) => [h("h2", {}, job?.title || t("train")), h("p", { class: job?.error ? "bad" : "" }, job?.error?.message ?? t(job?.state ?? "queued")), rose({ share: 0 }).element];
  const loop = async () => {
    if (gone) return;
    await tried(draw);
    timer = setTimeout(loop, AGAIN_MS);
  };
  loop();
  const stop = onJob((job, event) => {
    if (job.kind !== "train" || (job.id !== asked && job.id !== jobOf({ name: null })?.id)) return;
    if (event?.message) { log.hidden = false; log.append(`${event.message}\n`); log.scrollTop = log.scrollHeight; }
    if (ended(job)) { forgetModels(); tried(drawList); tried(draw); }
  });
  return () => { gone = true; clearTimeout(timer); stop(); };
}

/** The run that a job trains: its folder's id is not the job's, so it is found by name among the runs. */
async function runOf(job) {
  const name = job.request?.run ?? job.request?.name ?? job.title;
  return (await api.runs()).find((run) => run.name === name || run.name.startsWith(`${name}/`))?.id ?? null;
}
