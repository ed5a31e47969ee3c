// Figures over time as lines: plain SVG, the scale read off the data.
import { fill, h, svg } from "./dom.js";
import { lang } from "./i18n.js";

const W = 360,
  H = 170,
  LEFT = 46,
  RIGHT = 8,
  TOP = 8,
  BOTTOM = 22;
const COLOURS = ["var(--cobalt)", "var(--ruby)", "var(--emerald)", "var(--amber)", "var(--violet)"];

export const short = (value) =>
  Math.abs(value) >= 10000
    ? Intl.NumberFormat(lang, { notation: "compact" }).format(value)
    : value !== 0 && Math.abs(value) < 0.001
      ? Number(value.toPrecision(3)).toExponential()
      : Number(value.toPrecision(3)).toString();

function ticks(low, high, count) {
  const rough = (high - low) / count || 1,
    power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((one) => one * power >= rough) ?? 10);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(at);
  return found;
}

/** One chart; `series`: { name: [[x, y], ...] } of figures that share a scale. */
export function chart(title, series) {
  const names = Object.keys(series),
    all = names.flatMap((name) => series[name]);
  const xs = all.map(([x]) => x),
    sorted = all.map(([, y]) => y).sort((a, b) => a - b);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  // The first steps of a training are far above the rest; they may leave the chart so that the rest is readable.
  const low = sorted[0],
    high = sorted.length > 30 ? sorted[Math.floor(0.98 * (sorted.length - 1))] : sorted.at(-1);
  const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  const px = (x) => LEFT + ((x - x0) / (x1 - x0 || 1)) * (W - LEFT - RIGHT);
  const py = (y) =>
    Math.max(TOP, Math.min(H - BOTTOM, TOP + ((high + pad - y) / (high - low + 2 * pad)) * (H - TOP - BOTTOM)));
  const drawing = svg(
    "svg",
    {
      class: "curve",
      viewBox: `0 0 ${W} ${H}`,
      role: "img",
      "aria-label": `${title}: ${names.map((name) => `${name} ${short(series[name].at(-1)[1])}`).join(", ")}`,
    },
    ticks(low, high, 4).map((y) => [
      svg("line", { class: "axis", x1: LEFT, x2: W - RIGHT, y1: py(y), y2: py(y) }),
      svg("text", { x: LEFT - 5, y: py(y) + 4, "text-anchor": "end" }, short(y)),
    ]),
    ticks(x0, x1, 4).map((x) =>
      svg("text", { x: Math.min(px(x), W - 2 * RIGHT - 8), y: H - 6, "text-anchor": "middle" }, short(x)),
    ),
    names.map((name, i) =>
      svg("path", {
        stroke: COLOURS[i % COLOURS.length],
        d: series[name].map(([x, y], k) => `${k ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join(""),
      }),
    ),
    names.map((name, i) => {
      const [[x, y], more] = series[name]; // a single point is no line
      return more ? null : svg("circle", { fill: COLOURS[i % COLOURS.length], cx: px(x), cy: py(y), r: 4 });
    }),
  );
  return h(
    "figure",
    {},
    h(
      "figcaption",
      {},
      h("span", {}, title),
      h(
        "span",
        { class: "latest" },
        names.map((name, i) =>
          h(
            "b",
            { title: name, style: names.length > 1 ? `color:${COLOURS[i % COLOURS.length]}` : null },
            short(series[name].at(-1)[1]),
          ),
        ),
      ),
    ),
    drawing,
  );
}

/** Figures by noise level, such as mse/t0 and mse/t1, share a chart: [name, series] each. */
function together(figures) {
  const found = new Map();
  for (const [name, points] of figures) {
    const group = name.replace(/\/t\d+$/, "");
    found.set(group, { ...found.get(group), [name]: points });
  }
  return [...found];
}

/** Charts of a run's figures: the losses first, then what was measured, then how it ran. */
export function charts(box, figures, names) {
  const all = Object.entries(figures).filter(([name]) => !name.startsWith("gradient_norm/"));
  const losses = all.filter(([name]) => name.startsWith("loss/"));
  const called = losses.length > 1 ? (name) => `${names.loss}: ${name.slice(5)}` : () => names.loss;
  // The sum of the losses says nothing beside them.
  const rest = all.filter(([name]) => !name.startsWith("loss/") && !(name === "loss" && losses.length));
  const last = (name) => (name in names ? 1 : 0);
  rest.sort(([a], [b]) => last(a) - last(b));
  fill(
    box,
    losses.map(([name, points]) => chart(called(name), { [name]: points })),
    together(rest).map(([name, series]) => chart(names[name] ?? name.replaceAll("_", " "), series)),
  );
}
