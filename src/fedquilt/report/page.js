"use strict";
// Draws every figure. Plotly keeps frames apart from data, and the slider needs them.
const plots = JSON.parse(document.getElementById("plots").textContent);
const config = {
  responsive: true,
  displaylogo: false,
  // a report must not offer to send a federation's numbers to somebody's server, which plotly does by default
  plotlyServerURL: "",
  modeBarButtonsToRemove: ["sendChartToCloud", "select2d", "lasso2d", "autoScale2d"],
};
const narrow = window.matchMedia("(max-width: 600px)"); // as in page.css
const LETTERS = 32; // of a line on the narrowest screen
const LINE = 19; // pixels of a legend's line

// Plotly breaks no line by itself.
function wrapped(text, letters = LETTERS) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (longer.length <= letters || !lines.at(-1)) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines.join("<br>");
}

const lines = (text) => text.split("<br>").length;

// The same figure for a narrow screen: legend and colour bar below the plot, which stays as high as it was; titles of several lines.
function slim(plot) {
  const layout = structuredClone(plot.layout);
  layout.margin = { ...layout.margin, l: 44, r: 12 };
  for (const [name, axis] of Object.entries(layout)) {
    if (!/^[xy]axis/.test(name)) continue;
    const [from, to] = axis.domain || [0, 1];
    axis.title.text = wrapped(axis.title.text, name[0] === "y" ? Math.floor(((to - from) * (layout.height - 120)) / 7) : LETTERS);
    axis.title.font = { size: 12 };
  }
  const below = { xanchor: "left", y: 0, yref: "container", yanchor: "bottom" };
  const data = plot.data.map((trace) => ({ ...trace }));
  for (const trace of data) {
    for (const axis of ["y", "theta"]) trace[axis] &&= trace[axis].map((at) => (typeof at === "string" ? wrapped(at, 14) : at));
    if (trace.type === "box") trace.x = trace.x.map((at) => at.replace("<br>", " ")); // upright, a second line meets its neighbour
  }
  const named = layout.showlegend === false ? [] : data.filter((trace) => trace.name && trace.showlegend !== false);
  if (named.length > 1) {
    const heads = [layout.legend, layout.legend2].flatMap((legend) => legend?.title?.text ?? []);
    const head = heads.join("<br>");
    layout.legend = { ...layout.legend, ...below, x: -0.2, title: { text: head } };
    delete layout.legend2; // it would have to know how high the first is
    for (const trace of named) {
      delete trace.legend;
      trace.name = wrapped(trace.name.replace(new RegExp(`\\S{${LETTERS}}(?=\\S)`, "g"), "$& "));
    }
    layout.height += LINE * (named.reduce((sum, trace) => sum + lines(trace.name), 0) + (head ? lines(head) : 0)) + 12;
  }
  for (const trace of data.filter((one) => one.colorbar)) {
    trace.colorbar = { ...trace.colorbar, ...below, x: 0, orientation: "h" };
    layout.height += 70;
  }
  if (layout.polar) {
    const longest = Math.max(...data.flatMap((trace) => trace.theta.flatMap((name) => name.split("<br>").map((line) => line.length))));
    layout.margin.l = layout.margin.r = Math.min(90, 16 + 7 * longest); // a circle makes no room for the names around it
    layout.height -= 160;
  }
  if (layout.sliders) {
    const title = LINE * (lines(layout.xaxis.title.text) - 1);
    Object.assign(layout.sliders[0], { x: 0, len: 1, pad: { t: 56 + title, b: 8 } });
    layout.updatemenus[0].pad = { t: 140 + title };
    layout.height += 60 + title;
  }
  return { data, layout };
}

function draw(place) {
  const plot = plots[place.dataset.plot];
  const { data, layout } = narrow.matches ? slim(plot) : plot;
  place.style.minHeight = `${layout.height}px`;
  const file = { toImageButtonOptions: { filename: place.dataset.plot, scale: 2 } };
  Plotly.newPlot(place, { data, layout, frames: plot.frames || [], config: { ...config, ...file } });
}

const places = document.querySelectorAll("[data-plot]");
places.forEach(draw);
narrow.addEventListener("change", () => places.forEach(draw));
