/* What the pages do beyond being read: times that go on, updates as they happen, charts drawn from the tables beside
   them. Everything here is an addition; without it the pages show the same. */

(() => {
  "use strict";

  const page = () => document.getElementById("page");

  // Times. The server writes the same words when it makes the page.

  const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

  function span(seconds) {
    for (const [unit, size] of UNITS) {
      if (seconds >= size * (unit === "s" || unit === "d" ? 1 : 2)) return `${Math.floor(seconds / size)} ${unit}`;
    }
    return "0 s";
  }

  // Ages are told by the server's clock, however wrong the one here is.
  let ahead = 0;

  const age = (date) => (Date.now() - ahead - date.getTime()) / 1000;

  function setClock() {
    ahead = Date.now() - 1000 * Number(page().dataset.now);
  }

  function relative(date) {
    const seconds = age(date);
    if (Math.abs(seconds) < 1) return "now";
    return seconds > 0 ? `${span(seconds)} ago` : `in ${span(-seconds)}`;
  }

  function tellTimes() {
    for (const time of document.querySelectorAll("time[data-relative]")) {
      const words = relative(new Date(time.dateTime));
      if (time.textContent !== words) time.textContent = words;
    }
    for (const time of document.querySelectorAll("time[data-since]")) {
      const words = span(Math.max(0, age(new Date(time.dateTime))));
      if (time.textContent !== words) time.textContent = words;
    }
  }

  // Charts. Each series has its own dash and its own mark, so that colour is not needed to tell them apart.

  const PEN = [
    { colour: "--accent", dash: [], size: 5, fill: "--accent" },
    { colour: "--bad", dash: [7, 4], size: 8, fill: "" },
    { colour: "--care", dash: [2, 3], size: 12, fill: "" },
  ];
  const plots = new Map();

  function figuresOf(table) {
    const rows = [...table.tBodies[0].rows];
    return [
      rows.map((row) => Number(row.cells[0].dataset.at)),
      ...[...table.tHead.rows[0].cells].slice(1).map((_, i) =>
        rows.map((row) => {
          const value = row.cells[i + 1].dataset.value;
          return value === undefined || value === "" ? null : Number(value);
        })),
    ];
  }

  function readable(value, unit) {
    if (value === null || value === undefined) return "–";
    if (unit !== "s") return Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(1);
    if (value < 0.001) return value === 0 ? "0" : `${(value * 1e6).toFixed(0)} µs`;
    if (value < 1) return `${Number((value * 1000).toPrecision(3))} ms`;
    if (value < 120) return `${Number(value.toPrecision(3))} s`;
    return span(value);
  }

  // A line shows nothing of a value that has no neighbour.
  function alone(plot, series) {
    const values = plot.data[series];
    const known = (i) => values[i] !== null && values[i] !== undefined;
    return values.map((_, i) => i).filter((i) => known(i) && !known(i - 1) && !known(i + 1));
  }

  function settings(figure, table, width) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const unit = figure.dataset.unit;
    const font = `12px ${style.getPropertyValue("--sans")}`;
    const axis = { stroke: colour("--muted"), font, grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    return {
      width,
      height: 208,
      tzDate: (at) => window.uPlot.tzDate(new Date(at * 1000), "Etc/UTC"),
      padding: [10, 12, 0, 0],
      cursor: { drag: { x: false, y: false } },
      legend: { markers: { width: 2, dash: (_, i) => ["solid", "dashed", "dotted"][(i - 1) % PEN.length] } },
      scales: { x: { time: true }, y: { range: (_, __, high) => [0, high > 0 ? high * 1.1 : 1] } },
      axes: [
        { ...axis, values: figure.dataset.days ? "{DD} {MMM}" : "{HH}:{mm}", space: 60, size: 28 },
        {
          ...axis,
          size: 62,
          incrs: unit === "s" ? undefined : [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6],
          values: (_, ticks) => ticks.map((tick) => readable(tick, unit)),
        },
      ],
      series: [
        { label: "UTC", value: (_, at) => (at === null ? "–" : new Date(at * 1000).toISOString().slice(0, 16).replace("T", " ")) },
        ...[...table.tHead.rows[0].cells].slice(1).map((cell, i) => {
          const pen = PEN[i % PEN.length];
          return {
            label: cell.textContent.trim(),
            stroke: colour(pen.colour),
            width: 2,
            dash: pen.dash,
            points: { show: true, size: pen.size, fill: pen.fill ? colour(pen.fill) : "transparent", filter: alone },
            value: (_, value) => readable(value, unit),
          };
        }),
      ],
    };
  }

  function draw(again) {
    if (!window.uPlot) return;
    for (const [figure, plot] of plots) {
      if (again || !figure.isConnected) {
        plot.destroy();
        plots.delete(figure);
      }
    }
    for (const figure of document.querySelectorAll("figure.chart")) {
      const place = figure.querySelector(".plot");
      const table = figure.querySelector("details table");
      if (!place || !table || !table.tBodies[0].rows.length) continue;
      const figures = figuresOf(table);
      const plot = plots.get(figure);
      if (plot) {
        plot.setData(figures);
        continue;
      }
      const fresh = new window.uPlot(settings(figure, table, place.parentElement.clientWidth - 16), figures, place);
      place.setAttribute("aria-hidden", "true");
      figure.querySelector("details").open = false;
      plots.set(figure, fresh);
    }
  }

  function fit() {
    for (const [figure, plot] of plots) plot.setSize({ width: figure.clientWidth - 16, height: 208 });
  }

  // Updates. A page under somebody's hands stays as it is: ticked boxes, an open question, a chosen text.

  function busy() {
    return page().querySelector("input[name=id]:checked, details.sure[open]") !== null
      || (document.activeElement !== null && document.activeElement.matches("#page input:not([type=checkbox]), #page select"))
      || String(document.getSelection()).length > 0;
  }

  let waiting = false;
  // The last event that was heard of: what is asked for because of it must be made after it.
  let heard = null;

  function hold() {
    waiting = true;
    tellState();
  }

  function changed(event) {
    if (event) heard = event.lastEventId;
    if (busy() || document.hidden) {
      hold();
      return;
    }
    waiting = false;
    document.body.dispatchEvent(new CustomEvent("changed"));
  }

  // What was asked for while nobody touched the page may arrive when somebody does.
  function holdBack(event) {
    if (!busy()) return;
    event.preventDefault();
    hold();
  }

  let state = "off";

  function tellState(next) {
    state = next || state;
    const sign = document.getElementById("live");
    if (!sign) return;
    const words = { off: "Not live", live: waiting ? "Held" : "Live", lost: "Reconnecting" }[state];
    sign.dataset.state = state;
    sign.title = waiting ? "Updates wait while something is chosen, open or selected" : "";
    if (sign.textContent !== words) sign.textContent = words;
  }

  let source = null;

  function listen() {
    const address = page().dataset.events;
    if (!address || !window.EventSource || !window.htmx) return;
    source = new EventSource(address);
    source.addEventListener("open", () => tellState("live"));
    source.addEventListener("error", () => {
      tellState("lost");
      // A lost connection is opened anew by the browser, but not after an answer that it can't read, as of a proxy.
      if (source.readyState === EventSource.CLOSED) setTimeout(listen, 5000);
    });
    for (const name of page().dataset.eventNames.split(" ")) source.addEventListener(name, changed);
  }

  // Lists

  function tick(event) {
    const all = event.target.closest("input[data-all]");
    if (all) for (const box of page().querySelectorAll("input[name=id]")) box.checked = all.checked;
    if (event.target.matches("input[data-all], input[name=id]")) tellChosen();
  }

  function tellChosen() {
    const place = document.getElementById("chosen");
    if (!place) return;
    const boxes = page().querySelectorAll("input[name=id]:checked").length;
    place.textContent = boxes ? `${boxes} chosen` : "";
    if (!boxes && waiting) changed();
  }

  function offerAll() {
    for (const box of page().querySelectorAll("input[data-all]")) box.parentElement.hidden = false;
  }

  function leaveOutEmpty(event) {
    if (!event.target.matches("form.filters")) return;
    for (const field of event.target.elements) if (field.name && !field.value) field.disabled = true;
  }

  function start() {
    setClock();
    tellTimes();
    draw();
    listen();
    window.addEventListener("pagehide", () => source?.close());
    window.addEventListener("pageshow", (event) => { if (event.persisted) window.location.reload(); });
    offerAll();
    window.setInterval(tellTimes, 1000);
    window.setInterval(() => { if (waiting) changed(); tellState(); }, 2000);
    let soon;
    window.addEventListener("resize", () => { clearTimeout(soon); soon = setTimeout(fit, 150); });
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(true));
    document.addEventListener("visibilitychange", () => { if (!document.hidden && waiting) changed(); });
    document.addEventListener("change", tick);
    document.addEventListener("submit", leaveOutEmpty);
    document.addEventListener("htmx:config:request", (event) => {
      if (heard) event.detail.ctx.request.headers["Last-Event-ID"] = heard;
    });
    document.addEventListener("htmx:before:swap", holdBack);
    document.addEventListener("htmx:after:swap", () => { setClock(); tellTimes(); draw(); offerAll(); tellChosen(); });
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
