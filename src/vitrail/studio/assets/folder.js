// Choose a folder of pictures: a path on the server's machine, or pictures that are sent there; then look through it.
import * as api from "./api.js";
import { figure } from "./codebook.js";
import { labelled, select } from "./controls.js";
import { fill, h, toast, tried } from "./dom.js";
import { lang, size, t } from "./i18n.js";
import { icon } from "./icons.js";

const TAKEN = /\.(png|jpe?g|webp|txt)$/i;

/** A name made of `text` for a folder on the server: letters, digits and ._- as it takes them. */
export const plainName = (text) =>
  text
    .replace(/[^A-Za-z0-9._-]+/g, "-")
    .replace(/^[-._]+|[-._]+$/g, "")
    .slice(0, 56)
    .replace(/[-._]+$/, "") || "pictures";

/**
 * A control whose `value()` is a path or an upload's id; it begins with `given`, and `changed()` is called when another
 * one is chosen.
 */
export function folderPicker(label, changed = () => {}, given = "") {
  const path = h("input", {
    id: "folder",
    value: given,
    placeholder: "/home/me/pictures",
    oninput: () => {
      uploaded.value = "";
      changed();
    },
  });
  const uploaded = select(
    [["", t("noUpload")]],
    "",
    (id) => {
      if (id) path.value = "";
      changed();
    },
    { "aria-label": t("uploads"), style: "flex:1 1 12rem;width:auto" },
  );
  const input = h("input", {
    type: "file",
    id: "folder-files",
    class: "unseen",
    multiple: true,
    webkitdirectory: "",
    onchange: () => tried(send),
  });
  const state = h("p", { class: "note", "aria-live": "polite" });
  const where = h("small");

  const list = async () => {
    const { folders, roots } = await api.folders();
    fill(
      uploaded,
      h("option", { value: "" }, t("noUpload")),
      folders.map((one) => h("option", { value: one.id }, t("uploadOf", { name: one.name, n: one.pictures }))),
    );
    if (folders.some((one) => one.id === path.value)) [uploaded.value, path.value] = [path.value, ""];
    uploaded.hidden = folders.length === 0;
    where.textContent =
      roots == null ? t("pathHere") : roots.length ? t("pathBelow", { roots: roots.join(", ") }) : t("pathNone");
    path.disabled = roots != null && roots.length === 0;
  };
  const send = async () => {
    const files = [...input.files].filter((file) => TAKEN.test(file.name));
    if (!files.length) return toast(t("noPictures"), { bad: true });
    const folder = await api.newFolder(files[0].webkitRelativePath.split("/")[0] ?? "");
    let refused = 0;
    for (const [i, file] of files.entries()) {
      state.textContent = t("sending", { n: i + 1, all: files.length });
      await api.addToFolder(folder.id, file.webkitRelativePath || file.name, file).catch((error) => {
        if (error.offline) throw error;
        refused += 1;
      });
    }
    state.textContent = refused ? t("refused", { n: refused }) : "";
    await list();
    uploaded.value = folder.id;
    path.value = "";
    changed();
    return undefined;
  };
  tried(list);
  return {
    element: h(
      "div",
      { class: "stack" },
      labelled(label, path),
      where,
      h(
        "div",
        { class: "row" },
        input,
        h("label", { for: "folder-files", class: "button" }, icon("folder"), t("upload")),
        uploaded,
      ),
      state,
    ),
    value: () => path.value.trim() || uploaded.value,
    name: () =>
      path.value
        .trim()
        .replace(/[\\/]+$/, "")
        .split(/[\\/]/)
        .pop() ||
      uploaded.selectedOptions[0]?.textContent.replace(/ ?[(（].*$/, "") ||
      "",
  };
}

/** Look through `folder` and show in `box` what is there; resolves with the report, or null if `left()` says so. */
export async function lookThrough(box, folder, left = () => false) {
  let look = await api.inspect(folder);
  const bar = h("progress", { "aria-label": t("looking") }),
    line = h("p", { class: "note" });
  fill(box, bar, line);
  while (!look.report && !look.error) {
    if (look.total) {
      bar.max = look.total;
      bar.value = look.done;
    }
    line.textContent = `${t("looking")} ${look.done} / ${look.total || "?"}`;
    await new Promise((done) => setTimeout(done, 350));
    if (left()) return null;
    look = await api.inspection(look.id);
  }
  if (look.error) {
    fill(box);
    throw new Error(look.error);
  }
  fill(box, report(look));
  return look.report;
}

function report({ id, report: found }) {
  const captioned = found.pictures ? Math.round((100 * found.captions.found) / found.pictures) : 0;
  return [
    h(
      "div",
      { class: "figures" },
      figure(found.pictures, t("usable")),
      figure(found.unusable, t("broken")),
      figure(`${captioned} %`, t("captioned")),
      figure(found.repeats, t("copies")),
      figure(found.near_duplicates, t("alike")),
      figure(size(found.total_bytes), t("onDisk")),
    ),
    h(
      "ul",
      { class: "advice" },
      found.advice.map((one) => h("li", { class: one.level }, one[lang])),
    ),
    found.pictures
      ? h("img", { class: "sheet", src: api.inspectionSheet(id), alt: t("sheet", { n: found.pictures }) })
      : null,
    found.problems.length
      ? h(
          "details",
          {},
          h("summary", {}, t("problems", { n: found.problems.length })),
          h(
            "div",
            { class: "wide-table" },
            h(
              "table",
              {},
              h(
                "tbody",
                {},
                found.problems.map((one) => h("tr", {}, h("td", {}, one.path), h("td", {}, one.reason))),
              ),
            ),
          ),
        )
      : null,
  ];
}
