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
for (const place of document.querySelectorAll("[data-plot]")) {
  const plot = plots[place.dataset.plot];
  const file = { toImageButtonOptions: { filename: place.dataset.plot, scale: 2 } };
  Plotly.newPlot(place, { data: plot.data, layout: plot.layout, frames: plot.frames || [], config: { ...config, ...file } });
}
