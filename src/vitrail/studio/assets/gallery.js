// The gallery: every picture, found by its words, its kind, its model.
import * as api from "./api.js";
import { select } from "./controls.js";
import { compareDialog } from "./compare.js";
import { dialog, fill, h, toast, tried } from "./dom.js";
import { rose } from "./glass.js";
import { kindName, t } from "./i18n.js";
import { icon } from "./icons.js";
import { onPictures } from "./jobs.js";
import { detail, isGoing } from "./picture.js";
import { modelList } from "./shelf.js";

const PAGE = 60;
const KINDS = ["text_to_image", "edit", "vary", "inpaint", "walk", "animation", "upscale", "repair", "reconstruct"];

/** Tiles that load as they are scrolled to; `pick(picture, tile)` is called with the one that is pressed. */
function wall(pick, filters) {
  const tiles = h("div", { class: "tiles" }),
    tail = h("div", { class: "tail" });
  let next = null,
    turn = 0,
    busy = false;
  const tile = (picture) => {
    const element = h(
      "button",
      {
        type: "button",
        class: "tile",
        title: picture.prompt || kindName(picture.kind),
        "data-picture": picture.id,
        onclick: () => pick(picture, element),
      },
      h("img", { src: api.thumbnail(picture.id), alt: picture.prompt || kindName(picture.kind), loading: "lazy" }),
      picture.favourite
        ? h("span", { class: "starred", "aria-label": t("star") }, icon("star", { filled: true }))
        : null,
    );
    return element;
  };
  const empty = () =>
    Object.keys(filters()).length
      ? h("p", { class: "note" }, t("noneFound"))
      : h(
          "div",
          { class: "empty" },
          rose().element,
          h("h2", {}, t("none")),
          h("p", {}, t("noneHint")),
          h("a", { class: "button main", href: "#create" }, t("toCreate")),
        );
  // What was there stays until then, so that nothing flashes, and keeps the focus that it has.
  const begin = (found) => {
    const focused = tiles.contains(document.activeElement) && document.activeElement.dataset.picture;
    tiles.replaceChildren(...found);
    if (focused) found.find((one) => one.dataset.picture === focused)?.focus({ preventScroll: true });
  };
  const load = async () => {
    if (busy) return;
    busy = true;
    const mine = turn;
    await tried(async () => {
      const first = !next,
        page = await api.pictures({ limit: PAGE, ...filters(), ...(next && { before: next }) });
      if (mine !== turn) return;
      const more = page.pictures.filter((picture) => !isGoing(picture.id)).map(tile);
      if (first) begin(more);
      else tiles.append(...more);
      next = page.next;
      fill(
        tail,
        next ? h("button", { type: "button", onclick: load }, t("more")) : tiles.children.length ? null : empty(),
      );
    });
    busy = false;
    if (mine !== turn) load();
  };
  const restart = () => {
    turn += 1;
    next = null;
    load();
  };
  const watch = new IntersectionObserver(
    (seen) => {
      if (seen[0].isIntersecting && next) load();
    },
    { rootMargin: "600px" },
  );
  watch.observe(tail);
  tiles.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(tiles), ArrowDown: columns(tiles) }[event.key];
    const all = [...tiles.children],
      to = by && all[all.indexOf(event.target) + by];
    if (to) {
      event.preventDefault();
      to.focus();
    }
  });
  return { element: [tiles, tail], tiles, restart, stop: () => watch.disconnect() };
}
const columns = (tiles) => getComputedStyle(tiles).gridTemplateColumns.split(" ").length;

export function galleryView(main) {
  let star = false,
    kind = "",
    model = "",
    picked = null,
    timer;
  const search = h("input", {
    type: "search",
    id: "search",
    placeholder: t("search"),
    "aria-label": t("search"),
    oninput: () => {
      clearTimeout(timer);
      timer = setTimeout(() => shown.restart(), 200);
    },
  });
  const filters = () => ({
    ...(search.value.trim() && { query: search.value.trim() }),
    ...(star && { favourite: true }),
    ...(kind && { kind }),
    ...(model && { model }),
  });
  const toggle = (name, label, flip) =>
    h(
      "button",
      {
        type: "button",
        "aria-pressed": "false",
        onclick: (event) => event.currentTarget.setAttribute("aria-pressed", String(flip())),
      },
      icon(name),
      label,
    );
  // What is to be picked is said until it is done.
  let unsay = () => {};
  const say = (words) => {
    unsay();
    unsay = toast(t(words));
  };
  const shown = wall((picture, tile) => {
    if (!picked)
      return detail(picture.id, {
        siblings: [...shown.tiles.children].map((one) => one.dataset.picture),
        changed: shown.restart,
        // Its tile may be another element by now, or another picture's.
        closed: (id) => [...shown.tiles.children].find((one) => one.dataset.picture === id)?.focus(),
      });
    tile.setAttribute("aria-pressed", "true");
    picked.push(picture);
    if (picked.length === 1) return say("pickSecond");
    unsay();
    const [a, b] = picked;
    picked = [];
    for (const other of shown.tiles.children) other.removeAttribute("aria-pressed");
    return compareDialog(
      { src: api.file(a.id), label: a.prompt || t("sideA") },
      { src: api.file(b.id), label: b.prompt || t("sideB") },
    );
  }, filters);
  const models = select(
    [["", t("everyModel")]],
    "",
    (value) => {
      model = value;
      shown.restart();
    },
    { "aria-label": t("model") },
  );
  tried(async () =>
    models.append(
      ...(await modelList())
        .filter((one) => one.here && !one.catalogue)
        .map((one) => h("option", { value: one.name }, one.name)),
    ),
  );
  fill(
    main,
    h(
      "div",
      { class: "pane bar" },
      search,
      select(
        [["", t("everyKind")], ...KINDS.map((one) => [one, kindName(one)])],
        "",
        (value) => {
          kind = value;
          shown.restart();
        },
        { "aria-label": t("everyKind") },
      ),
      models,
      toggle("star", t("onlyStar"), () => {
        star = !star;
        shown.restart();
        return star;
      }),
      toggle("compare", t("compare"), () => {
        picked = picked ? null : [];
        if (picked) say("pickTwo");
        else unsay();
        return Boolean(picked);
      }),
    ),
    shown.element,
  );
  shown.restart();
  const stop = onPictures(() => {
    if (!Object.keys(filters()).length && !picked?.length && scrollY < 200) shown.restart();
  });
  return () => {
    unsay();
    shown.stop();
    stop();
  };
}

/** Let a person pick one picture; `taken(picture)` is called with it. */
export function pickFromGallery(taken) {
  const shown = wall(
    (picture) => {
      open.close();
      taken(picture);
    },
    () => ({}),
  );
  const open = dialog(
    t("pickPicture"),
    { close: t("close"), wide: true, onclose: shown.stop },
    h("div", { class: "view-gallery" }, shown.element),
  );
  shown.restart();
}
