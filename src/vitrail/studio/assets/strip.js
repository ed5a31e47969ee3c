// The latest pictures, in a row.
import * as api from "./api.js";
import { fill, h, tried } from "./dom.js";
import { kindName, t } from "./i18n.js";

export function latestStrip(open) {
  const list = h("div", { class: "strip", role: "list" });
  const element = h("section", { class: "pane", "aria-label": t("strip"), hidden: true }, list);
  const refresh = () =>
    tried(async () => {
      const { pictures } = await api.pictures({ limit: 24 });
      element.hidden = pictures.length === 0;
      fill(
        list,
        pictures.map((picture) =>
          h(
            "button",
            { type: "button", class: "tile", role: "listitem", title: picture.prompt || kindName(picture.kind), onclick: () => open(picture.id) },
            h("img", { src: api.thumbnail(picture.id), alt: picture.prompt || kindName(picture.kind), loading: "lazy" }),
          ),
        ),
      );
    });
  refresh();
  return { element, refresh };
}
