// Line icons of 24 units, drawn here so that nothing is fetched and their colour is the text's.
import { svg } from "./dom.js";

const PATHS = {
  create: "M4 20V11a8 8 0 0 1 16 0v9zM4 12h16M12 3v17M4 20l8-8 8 8",
  gallery: "M3.5 3.5h7v9h-7zM13.5 3.5h7v5h-7zM13.5 11.5h7v9h-7zM3.5 15.5h7v5h-7z",
  edit: "M14.5 5.5l4 4M4 20l1-4.5L16 4.5a2 2 0 0 1 3 0l.5.5a2 2 0 0 1 0 3L8.5 19z",
  plot: "M4 4v16h16M8 8h3v3H8zM14 8h3v3h-3zM8 14h3v3H8zM14 14h3v3h-3z",
  walk: "M4 17c3 0 3-10 7-10s4 10 9 10M4 17m-1.5 0a1.5 1.5 0 1 0 3 0a1.5 1.5 0 1 0-3 0M20 17m-1.5 0a1.5 1.5 0 1 0 3 0a1.5 1.5 0 1 0-3 0",
  codebook: "M4 4h5v5H4zM10.5 4H15v5h-4.5zM17 4h3v5h-3zM4 11h3v5H4zM9 11h5v5H9zM16 11h4v5h-4zM4 18h16v2H4z",
  train: "M4 4v16h16M7 8c2 6 4 8 6 8.5s5 .5 7 .5M17 4l3 3-3 3",
  evaluate: "M5 20V11M10 20V5M15 20v-7M20 20V8",
  rate: "M12 4v16M5 8l7-2 7 2M5 8l-2.5 6h5zM19 8l-2.5 6h5zM8 20h8",
  models: "M12 3l8 4.5v9L12 21l-8-4.5v-9zM12 12l8-4.5M12 12L4 7.5M12 12v9",
  queue: "M4 6h16M4 12h11M4 18h7",
  menu: "M4 7h16M4 12h16M4 17h16",
  star: "M12 3.5l2.6 5.4 5.9.800-4.3 4.1 1 5.9-5.2-2.8-5.2 2.8 1-5.9L3.5 9.7l5.9-.8z",
  download: "M12 4v11M7.5 11L12 15.5 16.5 11M5 20h14",
  trash: "M4.5 7h15M9 7V4.5h6V7M6.5 7l1 13h9l1-13",
  vary: "M4 7h9a4 4 0 0 1 0 8H8M11 12l-3 3 3 3M20 17h-3",
  input: "M4 12h10M10 8l4 4-4 4M14 4h6v16h-6",
  enlarge: "M14 4h6v6M20 4l-7 7M10 20H4v-6M4 20l7-7",
  reuse: "M5 12a7 7 0 1 1 2 5M5 20v-5h5",
  info: "M12 11v6M12 7.5v.1M12 3a9 9 0 1 0 .01 0z",
  up: "M12 19V6M6.5 11.5L12 6l5.5 5.5",
  down: "M12 5v13M6.5 12.5L12 18l5.5-5.5",
  close: "M6 6l12 12M18 6L6 18",
  dice: "M5 5h14v14H5zM9 9v.1M15 15v.1M12 12v.1M15 9v.1M9 15v.1",
  theme: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  search: "M10.5 4a6.5 6.5 0 1 0 .01 0zM15.5 15.5L20 20",
  idea: "M9 17.5h6M10 20.5h4M8 14a5.5 5.5 0 1 1 8 0c-.8.8-1 1.5-1 3.5H9c0-2-.2-2.7-1-3.5z",
  brush: "M20 4c-5 2-9 6-11 10l2.5 2.5C15.5 14 19 9.5 20 4zM8.5 15c-2.5 0-3 2-4.5 5 4 0 6-.5 6.5-3z",
  eraser: "M9 19l-5-5L14 4l6 6-9 9zM9 9l6 6M8 19h12",
  undo: "M5 9h9a5 5 0 0 1 0 10H8M8.5 5L4.5 9l4 4",
  play: "M7 4.5v15L19 12z",
  pause: "M8 5v14M16 5v14",
  folder: "M3.5 6h6l2 2.5h9V19h-17z",
  compare: "M4 5h7v14H4zM13 5h7v14h-7zM12 3v18",
  plus: "M12 5v14M5 12h14",
  check: "M5 12.5l4.5 4.5L19 7",
};

/** The icon called `name`; what it means is said by the text or label beside it. */
export function icon(name, { filled = false } = {}) {
  return svg(
    "svg",
    {
      class: "icon",
      viewBox: "0 0 24 24",
      "aria-hidden": "true",
      fill: filled ? "currentColor" : "none",
      stroke: "currentColor",
      "stroke-width": "1.6",
      "stroke-linecap": "round",
      "stroke-linejoin": "round",
    },
    svg("path", { d: PATHS[name] }),
  );
}
