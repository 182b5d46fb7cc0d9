"use strict";
// A choice of the column that colours the map. Without scripts it keeps the colours that it was drawn in.
const figure = document.querySelector("#map figure");
const svg = figure.querySelector("svg");
const columns = JSON.parse(figure.dataset.columns);
const dots = [...svg.querySelectorAll("[data-row]")].sort((one, other) => one.dataset.row - other.dataset.row);
const places = dots.map((dot) => {
  const box = dot.getBBox();
  const title = dot.querySelector("title").textContent;
  return { x: box.x + box.width / 2, y: box.y + box.height / 2, item: escaped(title.split(", ")[0]), drawn: dot.innerHTML };
});
const size = 0.45 * Math.min(...dots.slice(0, 50).map((dot) => dot.getBBox().height));
const colors = ["blue", "orange", "green", "pink", "sky", "red", "ink"];
// Groups differ by their shapes, too: a circle, triangles, a square, a diamond, a plus and a bar, all about 2 wide.
const shapes = ["M-1 0A1 1 0 1 0 1 0A1 1 0 1 0-1 0Z", "M0-1.1 1.1 1H-1.1Z", "M-.9-.9H.9V.9H-.9Z", "M0-1.3 1.3 0 0 1.3-1.3 0Z",
  "M0 1.1-1.1-1H1.1Z", "M-.4-1.2H.4V-.4H1.2V.4H.4V1.2H-.4V.4H-1.2V-.4H-.4Z", "M-1.3-.5H1.3V.5H-1.3Z"];
const viridis = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"];
const blank = `<path d="${shapes[0]}" style="fill: none; stroke: var(--grey); stroke-width: 0.3"/>`;

function escaped(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}

function groupMark(group, place) {
  const color = group.kind === "others" ? "grey" : colors[place % 7];
  return group.kind === "blank" ? blank : `<path d="${shapes[place % 7]}" style="fill: var(--${color})"/>`;
}

function numberMark(share) {
  const place = Math.min(Math.floor(4 * share), 3);
  const part = Math.round(100 * (4 * share - place));
  const color = `color-mix(in srgb, ${viridis[place + 1]} ${part}%, ${viridis[place]})`;
  return `<path d="${shapes[0]}" style="fill: ${color}"/>`;
}

// What a column shows: the mark and the words of a dot, and the legend.
function look(column) {
  if (column.groups) {
    const marks = column.groups.map(groupMark);
    const entry = (group, place) => `<svg viewBox="-2 -2 4 4" width="14" height="14">${marks[place]}</svg> ${escaped(group.name)}`;
    return [(dot) => [marks[column.of[dot]], column.groups[column.of[dot]].name], column.groups.map(entry).join(" &emsp; ")];
  }
  const known = column.numbers.filter((number) => number !== null);
  const low = Math.min(...known), high = Math.max(...known);
  const bar = `<span style="display: inline-block; width: 8em; height: 0.8em; background: linear-gradient(90deg, ${viridis})"></span>`;
  const mark = (number) => number === null ? blank : numberMark(high > low ? (number - low) / (high - low) : 0);
  const hollow = known.length < column.numbers.length ? " &emsp; hollow: blank" : "";
  return [(dot) => [mark(column.numbers[dot]), column.numbers[dot] ?? "blank"], `${low} ${bar} ${high}${hollow}`];
}

function show(column) {
  const [words, entries] = column ? look(column) : [];
  dots.forEach((dot, number) => {
    const place = places[number];
    if (!column) return void (dot.innerHTML = place.drawn);
    const [mark, value] = words(number);
    const title = `<title>${place.item}, ${escaped(column.name)}: ${escaped(value)}</title>`;
    dot.innerHTML = `${title}<g transform="translate(${place.x} ${place.y}) scale(${size})" opacity="0.8">${mark}</g>`;
  });
  legend.innerHTML = entries ?? "";
  svg.querySelector("#map-legend")?.setAttribute("display", column ? "none" : "inline");
}

const legend = document.createElement("p");
const label = document.createElement("label");
const select = document.createElement("select");
label.append("Colours show ", select);
select.append(...[{ name: figure.dataset.drawn }, ...columns].map(({ name }, place) => new Option(name, place)));
select.style.cssText = "font: inherit; max-width: 100%";
select.addEventListener("change", () => show(columns[select.value - 1]));
figure.prepend(label, legend);
