/* Tokens in coloured cells, for the page at `/` and for preview's report. Text is put in by textContent alone. */
"use strict";

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/* 1.234 as 1.23 and −1.234 as −1.23; `signed` writes the plus too. */
function plain(number, digits = 2) {
  return number.toFixed(digits).replace("-", "−");
}

function signed(number, digits = 2) {
  return (number < 0 ? "" : "+") + plain(number, digits);
}

function visible(text) {
  return text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";
}

/* A scale from `middle`, where there is no colour, to `middle` ± `limit`; `write` writes its numbers. */
function scaleOf(numbers, middle = 0, write = signed) {
  const limit = numbers.reduce((most, number) => Math.max(most, Math.abs(number - middle)), 0);
  return { middle, limit: limit || 1, write };
}

function colour(cell, number, scale) {
  const share = (number - scale.middle) / scale.limit;
  cell.classList.toggle("low", share < 0);
  cell.style.setProperty("--share", Math.min(Math.abs(share), 1).toFixed(3));
}

/* Fill `list`, an <ol class="tokens">, with a cell for each {text, number, label, state}. One of them can be tabbed to,
   and arrow keys go on from there; `picked` is called with the index of the cell that is pointed at. */
function drawTokens(list, cells, scale, picked = () => {}) {
  list.replaceChildren(...cells.map(({ text, number, label, state }, index) => {
    const cell = element("li", { className: state ? "token state" : "token", tabIndex: index ? -1 : 0 },
      element("b", { textContent: state ? text : visible(text) }),
      element("span", { textContent: scale.write(number) }));
    cell.setAttribute("aria-label", label);
    cell.onfocus = cell.onpointerenter = () => picked(index);
    colour(cell, number, scale);
    return cell;
  }));
  list.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    const here = [...list.children].indexOf(document.activeElement);
    if (!step || here < 0) return;
    event.preventDefault();
    const next = list.children[Math.min(Math.max(here + step, 0), list.children.length - 1)];
    document.activeElement.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  };
}

/* Five colours of the scale with their numbers. */
function drawLegend(place, scale) {
  place.replaceChildren(...[-1, -0.5, 0, 0.5, 1].map((share) => {
    const number = scale.middle + share * scale.limit;
    const cell = element("span", { className: "token" }, element("span", { textContent: scale.write(number) }));
    colour(cell, number, scale);
    return cell;
  }));
}
