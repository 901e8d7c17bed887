/* Preview's report. All numbers are in its JSON block; this draws them. */
"use strict";

const at = (id) => document.getElementById(id);
const { title, result, pairs } = JSON.parse(at("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 420, HEIGHT = 230, LEFT = 44, BOTTOM = 42, TOP = 24;
const AT_ONCE = 10;
let shown = AT_ONCE;

const count = (number) => number.toLocaleString("en");
const percent = (share, digits = 1) => share === null ? "–" : `${(share * 100).toFixed(digits)}%`;
const short = (number) => number === null ? "–" : plain(Number(number.toPrecision(3)), 12).replace(/\.?0+$/, "");
const lengthOf = (pair) => pair.words[0].length - pair.words[1].length;
const ORDERS = {
  largest: (name) => (a, b) => Math.abs(b.margins[name]) - Math.abs(a.margins[name]),
  against: (name) => (a, b) => a.margins[name] - b.margins[name],
  length: () => (a, b) => Math.abs(lengthOf(b)) - Math.abs(lengthOf(a)),
  row: () => (a, b) => a.row - b.row,
};

function row(head, cells, name = "td") {
  const first = element("th", { textContent: head });
  if (name === "td") first.scope = "row";
  return element("tr", {}, first, ...cells.map((text) => element(name, { textContent: text })));
}

function fillTable(table, heads, rows) {
  table.replaceChildren(element("thead", {}, row(heads[0], heads.slice(1), "th")),
    element("tbody", {}, ...rows.map(([head, ...cells]) => row(head, cells))));
}

function drawSummary() {
  at("about").textContent = `${title}: ${count(result.pairs)} pairs, teacher ${result.teacher_id}`;
  const readings = Object.entries(result.readings);
  fillTable(at("readings"),
    ["reading", "agrees with the label", "95 %", "r, length", `r, teacher's ${result.teacher_margin}`, "std, nats", "α", "effective pairs", "w < ¼", "flipped, w > ¾"],
    readings.map(([name, r]) => [name, percent(r.agreement), r.interval.map((end) => percent(end)).join(" … "),
      r.length_correlation === null ? "–" : signed(r.length_correlation),
      r.teacher_correlation === null ? "–" : signed(r.teacher_correlation),
      short(r.deviation), short(r.alpha), percent(r.effective_pairs, 0), percent(r.turned_down, 0), percent(r.flipped, 0)]));
  at("alone").textContent = `Length alone: preferring the ${result.length.prefers} completion agrees with the label in ${percent(result.length.agreement)}.`;
  at("warnings").replaceChildren(...readings.flatMap(([name, { warnings }]) => warnings.map((warning) =>
    element("li", {}, element("b", { textContent: `${name}: ` }), warning))));
  fillTable(at("cross-entropy"), ["model", "chosen", "rejected"], Object.entries(result.cross_entropy).map(
    ([role, { chosen, rejected }]) => [role.replaceAll("_", " "), chosen.toFixed(3), rejected.toFixed(3)]));
}

function shape(name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function chart(place, label, ...parts) {
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  svg.append(...parts, shape("line", { class: "axis", x1: LEFT, x2: WIDTH, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }));
  place.replaceChildren(svg);
}

const height = (share) => HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP);

function drawHistogram({ edges, counts, below, above }) {
  const most = Math.max(...counts), step = (WIDTH - LEFT) / counts.length;
  const bars = counts.map((number, index) => {
    const bar = shape("rect", { class: edges[index] < 0 ? "low" : "high", x: LEFT + index * step, width: step,
      y: height(number / most), height: height(0) - height(number / most) });
    bar.append(shape("title", {}, `${short(edges[index])} to ${short(edges[index + 1])}: ${count(number)} pairs`));
    return bar;
  });
  const x = (edge) => LEFT + step * (edge - edges[0]) / (edges[1] - edges[0]);
  const ends = [edges[0], 0, edges.at(-1)].filter((edge, index, all) => all.indexOf(edge) === index && edge >= edges[0] && edge <= edges.at(-1));
  const labels = ends.map((edge) => shape("text", { x: x(edge), y: HEIGHT - BOTTOM + 16,
    "text-anchor": edge === edges[0] ? "start" : edge === edges.at(-1) ? "end" : "middle" }, short(edge)));
  const beyond = shape("text", { x: WIDTH, y: 14, "text-anchor": "end" }, `further left: ${count(below)}, further right: ${count(above)}`);
  chart(at("histogram"), "Histogram of margins", ...bars, ...labels, beyond, shape("text", { x: 0, y: height(1) + 4 }, count(most)));
}

function drawByLength(groups) {
  const step = (WIDTH - LEFT - 30) / groups.length; // the last label is wider than its group
  const parts = groups.flatMap(({ shortest, longest, pairs: number, agreement, interval }, index) => {
    const x = LEFT + (index + 0.5) * step;
    const point = shape("circle", { cx: x, cy: height(agreement), r: 5 });
    point.append(shape("title", {}, `${percent(agreement)} of ${count(number)} pairs`));
    const range = shortest === longest ? signed(shortest, 0) : `${signed(shortest, 0)}…${signed(longest, 0)}`;
    return [shape("line", { class: "interval", x1: x, x2: x, y1: height(interval[0]), y2: height(interval[1]) }), point,
      shape("text", { x, y: HEIGHT - BOTTOM + (index % 2 ? 34 : 16), "text-anchor": "middle" }, range),
      shape("text", { x: x + 6, y: height(agreement) - 5 }, percent(agreement, 0))];
  });
  const levels = [0, 0.5, 1].flatMap((share) => [
    shape("line", { class: share === 0.5 ? "half" : "axis", x1: LEFT, x2: WIDTH, y1: height(share), y2: height(share) }),
    shape("text", { x: 0, y: height(share) + 4 }, percent(share, 0))]);
  chart(at("by-length"), "Agreement by difference in length", ...levels, ...parts);
}

function drawPairs() {
  const name = at("reading").value;
  const sorted = pairs.toSorted(ORDERS[at("order").value](name));
  const psi = pairs.flatMap((pair) => pair.psi[name].flat());
  const scale = scaleOf(psi);
  drawLegend(at("legend"), scale);
  at("pairs").replaceChildren(...sorted.slice(0, shown).map((pair) => drawPair(pair, name, scale)));
  at("more").hidden = shown >= pairs.length;
}

function drawPair(pair, name, scale) {
  const margin = pair.margins[name], weight = pair.weights[name];
  const numbers = `row ${pair.row} · margin ${signed(margin, 3)} · ${margin > 0 ? "agrees" : "does not agree"} · `
    + `length ${signed(lengthOf(pair), 0)} · weight ${weight === null ? "–" : weight.toFixed(3)}`;
  const sides = ["chosen", "rejected"].flatMap((side, index) => {
    const list = element("ol", { className: "tokens" });
    list.setAttribute("aria-label", side);
    const cells = pair.words[index].map((text, t) => {
      const number = pair.psi[name][index][t];
      return { text, number, label: `${side}, token ${t + 1}, “${text}”: ψ ${signed(number)}` };
    });
    drawTokens(list, cells, scale);
    return [element("h3", { textContent: side }), list];
  });
  return element("article", {}, element("p", { className: "numbers", textContent: numbers }),
    element("p", { className: "prompt", textContent: pair.prompt }), ...sides);
}

function drawReading() {
  const { histogram, by_length } = result.readings[at("reading").value];
  drawHistogram(histogram);
  drawByLength(by_length);
  shown = AT_ONCE;
  drawPairs();
}

drawSummary();
at("held").textContent = pairs.length === result.pairs ? "All pairs are in this file."
  : `Of ${count(result.pairs)} pairs this file holds ${count(pairs.length)}: by each reading those of the largest margins and of the strongest disagreements, and some by chance.`;
at("reading").replaceChildren(...Object.keys(result.readings).map((name) => element("option", { textContent: name })));
at("reading").onchange = drawReading;
at("order").onchange = () => { shown = AT_ONCE; drawPairs(); };
at("more").onclick = () => { shown += AT_ONCE; drawPairs(); };
drawReading();
