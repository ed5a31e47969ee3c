// Training: the list of trainings, and a new one: a folder, a look at it, a recipe.
import * as api from "./api.js";
import { labelled, remembered, select } from "./controls.js";
import { fill, h, toast, tried } from "./dom.js";
import { folderPicker, lookThrough, plainName } from "./folder.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";
import { cancel, onJob, submit, titleOf, waiting, waitingFor } from "./jobs.js";
import { showRun } from "./train_run.js";

const AGAIN_MS = 4000;
const BLANK = { folder: "", recipe: "", name: "", length: "" };
/** The new training as far as it is filled in, kept while the page is open. */
const draft = { ...BLANK };

export function trainView(main, chosen) {
  let gone = false,
    timer;
  const list = h("ul", { class: "runs" }),
    body = h("section", { class: "pane stack" });
  const open = (id) => {
    location.hash = id ? `train/${id}` : "train";
  };

  const drawList = async () => {
    const runs = await api.runs();
    const coming = queued(),
      first = coming.filter((job) => !runs.some((run) => run.name === job.request.run));
    const focused = list.contains(document.activeElement) && nameOf(document.activeElement);
    fill(
      list,
      first.map((job) => h("li", {}, waitingRow(job, chosen), cancelOf(job))),
      runs.map((run) => {
        const job = coming.find((one) => one.request.run === run.name); // that goes on with it
        return h("li", {}, runRow(run, job, chosen), job && cancelOf(job));
      }),
      runs.length || first.length ? null : h("li", { class: "note" }, t("noRuns")),
    );
    if (focused) [...list.querySelectorAll("a, button")].find((one) => nameOf(one) === focused)?.focus();
    return runs;
  };

  fill(
    main,
    h(
      "div",
      { class: "panes list" },
      h(
        "section",
        { class: "pane stack" },
        h("div", { class: "page-head" }, h("h2", {}, t("train")), h("p", {}, t("trainHint"))),
        h("button", { type: "button", class: "main", onclick: () => open("") }, icon("plus"), t("newRun")),
        h("h3", {}, t("runs")),
        list,
      ),
      body,
    ),
  );

  const again = async () => {
    if (gone) return;
    await tried(drawList);
    timer = setTimeout(again, AGAIN_MS);
  };
  again();
  const states = new Map(queued().map((job) => [job.id, "queued"]));
  const forget = onJob(({ id, kind, state }) => {
    if (kind !== "train" || states.get(id) === state) return;
    states.set(id, state);
    tried(drawList);
  });
  const stop = chosen ? showRun(body, chosen, drawList) : newRun(body, open, () => gone);
  return () => {
    gone = true;
    clearTimeout(timer);
    forget();
    stop();
  };
}

/** Trainings that wait, the next one first; most have no folder yet, only the queue knows them. */
const queued = () => waiting().filter((job) => job.kind === "train");

/** What tells an element of the list from the others after it is drawn anew. */
const nameOf = (element) => element.getAttribute("href") ?? element.getAttribute("aria-label");

const waitingRow = (job, chosen) =>
  h(
    "a",
    { href: `#train/${job.id}`, "aria-current": [job.id, `run:${job.request.run}`].includes(chosen) ? "page" : null },
    h("b", {}, job.request.run ?? titleOf(job)),
    h("small", {}, waitingFor(job.position)),
  );

const runRow = (run, job, chosen) =>
  h(
    "a",
    {
      href: `#train/${run.id}`,
      "aria-current": [run.id, `run:${run.name}`, job?.id].includes(chosen) ? "page" : null,
    },
    h("b", {}, run.name),
    h(
      "small",
      {},
      `${job ? waitingFor(job.position) : t(`run_${run.state}`)} · ${t("seen", { n: run.images.toLocaleString() })}`,
    ),
    h("progress", { max: 1, value: run.share, "aria-label": run.name }),
  );

const cancelOf = (job) =>
  h(
    "button",
    {
      type: "button",
      class: "quiet small cancel",
      "aria-label": `${t("cancel")}: ${job.request.run ?? titleOf(job)}`,
      title: t("cancel"),
      onclick: () => tried(() => cancel(job.id)),
    },
    icon("close"),
  );

function newRun(body, open, left) {
  const found = h("div", { class: "stack" }),
    recipes = h("div"),
    name = remembered("input", draft, "name", {
      id: "run-name",
      placeholder: t("nameHint"),
      pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]{0,60}",
    });
  const length = remembered("input", draft, "length", {
    id: "run-images",
    type: "number",
    min: 100,
    step: 100,
    placeholder: t("lengthHint"),
  });
  const picker = folderPicker(
    t("folder"),
    () => {
      draft.folder = picker.value();
    },
    draft.folder,
  );
  let recipe = null;
  const look = () =>
    tried(async () => {
      if (!picker.value()) return toast(t("needFolder"), { bad: true });
      return lookThrough(found, picker.value(), left);
    });
  const start = () =>
    tried(async () => {
      const folder = picker.value();
      if (!folder && !recipe) return toast(t("needFolder"), { bad: true });
      const data = folder ? await api.folderPath(folder) : null;
      const run = plainName(name.value.trim() || (recipe ? recipe.file.replace(/\.toml$/, "") : picker.name()));
      await submit({
        kind: "train",
        run,
        ...(data && { data }),
        ...(recipe && { recipe: recipe.text }),
        ...(length.value && { changes: [`optim.until_images=${Math.round(Number(length.value))}`] }),
      });
      Object.assign(draft, BLANK);
      toast(t("started"));
      open(`run:${run}`);
      return undefined;
    });
  fill(
    body,
    h("h2", {}, t("newRun")),
    picker.element,
    h("div", { class: "row" }, h("button", { type: "button", id: "look", onclick: look }, icon("search"), t("look"))),
    found,
    recipes,
    h("div", { class: "pair" }, labelled(t("runName"), name), labelled(t("runLength"), length)),
    h(
      "div",
      { class: "row" },
      h("button", { type: "button", class: "main", id: "go", onclick: start }, icon("train"), t("startRun")),
    ),
  );
  tried(async () => {
    const rows = await api.recipes();
    const about = h("small", {}, t("suggested"));
    const choose = (value) => {
      draft.recipe = value;
      recipe = rows.find((one) => one.file === value) ?? null;
      about.textContent = recipe?.about ?? t("suggested");
    };
    const choice = select(
      [
        ["", t("recipeAuto")],
        ...rows.map((one) => [one.file, `${one.file.replace(/\.toml$/, "")} (${one.kind.replaceAll("_", " ")})`]),
      ],
      draft.recipe,
      choose,
      { id: "recipe" },
    );
    choose(draft.recipe);
    fill(recipes, labelled(t("recipe"), choice), about);
  });
  return () => {};
}
