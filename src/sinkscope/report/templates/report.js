"use strict";
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const SVG = "http://www.w3.org/2000/svg";
  let chosen = DATA.start;

  function make(tag, attributes = {}, ...children) {
    const element = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  // ---- the card of one head
  const card = $("#card");
  const cardLine = (name, text) => make("div", { class: text.length > 60 ? "prose" : "" }, make("dt", {}, name), make("dd", {}, text));
  function showCard(key) {
    const [layer, head] = key.split("-");
    const parts = [make("h3", {}, `Layer ${layer}, head ${head}`)];
    DATA.heads[key].forEach((texts, group) => {
      const { title, names } = DATA.card[group];
      if (group) parts.push(make("h4", {}, title));
      parts.push(make("dl", {}, ...names.map((name, i) => cardLine(name, texts[i]))));
    });
    card.replaceChildren(...parts);
    const [[kind, sink], [events]] = DATA.heads[key];
    const verdict = DATA.effects ? ` Verdict: ${said(key, "verdict")}.` : "";
    $("#readout").textContent = `L${layer}.H${head}: ${kind}, ${sink}; events ${events}.${verdict}`;
  }

  function said(key, name) {
    for (const [group, { names }] of DATA.card.entries()) {
      if (names.includes(name)) return DATA.heads[key][group][names.indexOf(name)];
    }
  }

  // ---- effects of one head: a line per edit, on one scale, with the interval of the control behind all
  const measureBox = $("#effect-measure");
  const sign = (text) => text.replace("-", "−");
  function written(value, { percent }, unit = percent ? "%" : "", exact = false) {
    const size = percent ? 100 * value : value;
    if (size === 0) return `0${unit}`;
    if (Math.abs(size) < 0.001) return `${size < 0 ? ">−" : "<"}0.001${unit}`;
    const digits = size.toPrecision(2);
    return sign(`${Math.abs(size) >= 99.5 ? Math.round(size) : exact ? Number(digits) : digits}${unit}`);
  }
  function scaleOf(cells, { log, percent }) {
    const all = cells.filter(Boolean).flatMap((cell) => cell.slice(0, 3)).filter((value) => value !== null);
    if (log) {
      const positive = all.filter((value) => value > 0);
      const top = Math.max(...positive, 1e-12);
      const high = Math.ceil(Math.log10(top) - 1e-9);
      const low = Math.max(Math.floor(Math.log10(Math.min(...positive, top))), high - 5, -12);
      const first = Math.min(low, high - 1);
      const ticks = Array.from({ length: high - first + 1 }, (_, i) => 10 ** (first + i));
      return { ticks, at: (value) => (Math.log10(Math.max(value, 10 ** first)) - first) / (high - first) };
    }
    const low = percent ? 0 : Math.min(0, ...all);
    const high = percent ? 1 : Math.max(low + 1e-9, ...all);
    return { ticks: low < 0 && high > 0 ? [low, 0, high] : [low, (low + high) / 2, high], at: (value) => (value - low) / (high - low) };
  }
  function drawRange(cell, control, scale) {
    const percent = (value) => `${(2 + 96 * Math.min(1, Math.max(0, scale.at(value)))).toFixed(2)}%`;
    const drawn = make("svg:svg", { class: "range", "aria-hidden": "true" });
    for (const tick of scale.ticks) drawn.append(make("svg:line", { class: "tick", x1: percent(tick), x2: percent(tick), y1: 0, y2: "100%" }));
    if (control && control[1] !== null) {
      const [left, right] = [control[1], control[2]].map((value) => parseFloat(percent(value)));
      drawn.append(make("svg:rect", { class: "control", x: `${left}%`, width: `${Math.max(0.4, right - left)}%`, y: 0, height: "100%" }));
    }
    if (cell[1] !== null) drawn.append(make("svg:line", { class: "span", x1: percent(cell[1]), x2: percent(cell[2]), y1: "50%", y2: "50%" }));
    drawn.append(make("svg:circle", { cx: percent(cell[0]), cy: "50%", r: 4 }));
    return drawn;
  }
  function showEffects(key) {
    const [layer, head] = key.split("-");
    const measured = DATA.effects.heads[key];
    const word = said(key, "verdict");
    $("#effects-title").textContent = `Layer ${layer}, head ${head}: ${measured ? word : "not edited"}`;
    $("#effect-rows").replaceChildren();
    measureBox.parentElement.hidden = !measured;
    if (!measured) return;
    const measure = DATA.effects.measures.find(({ name }) => name === measureBox.value);
    const cells = measured[measure.name];
    if (!cells) {
      $("#effect-rows").append(make("p", { class: "hint" }, "This was not measured for this head."));
      return;
    }
    const scale = scaleOf(cells, measure);
    const control = cells[DATA.effects.edits.indexOf("control")];
    const axis = make("div", { class: scale.ticks.length > 3 ? "ticks many" : "ticks", "aria-hidden": "true" });
    for (const tick of scale.ticks) {
      const label = make("span", {}, written(tick, measure, measure.percent ? "%" : "", true));
      label.style.left = `${2 + 96 * scale.at(tick)}%`;
      axis.append(label);
    }
    const rows = DATA.effects.edits.flatMap((edit, i) => {
      const cell = cells[i];
      if (!cell) return [];
      const [value, low, high] = cell;
      const told = [written(value, measure)];
      if (low !== null) told.push(" ", make("span", {}, `(${written(low, measure, "")} to ${written(high, measure, "")})`));
      return [make("tr", {}, make("th", { scope: "row" }, edit), make("td", { class: "drawn" }, drawRange(cell, control, scale)), make("td", {}, ...told))];
    });
    const inputs = cells.filter(Boolean)[0][3];
    const head3 = make("tr", {}, make("th", { scope: "col" }, "edit"), make("th", { scope: "col", class: "drawn" }, axis), make("th", { scope: "col" }, "effect (95% interval)"));
    $("#effect-rows").append(
      make("table", { class: "ranges" }, make("thead", {}, head3), make("tbody", {}, ...rows)),
      make("p", { class: "hint" }, `Change of: ${measure.label}; ${inputs} inputs${measure.log ? ", log scale" : ""}. The grey band is the interval of the control.`),
    );
  }
  if (DATA.effects) {
    for (const { name, label } of DATA.effects.measures) measureBox.append(make("option", { value: name }, label));
    measureBox.addEventListener("change", () => showEffects(chosen));
  }

  // ---- heatmap: hover, focus and arrow keys preview a head; click, Enter and Space keep it
  const maps = $$(".heat-figures figure svg");
  const keyOf = (mark) => mark.id.split("-").slice(-2).join("-");
  const cells = new Map(maps.map((svg) => [svg, new Map($$(".mark", svg).map((mark) => [keyOf(mark), mark]))]));

  function frame(svg, name, key) {
    $$(`.frame.${name}`, svg).forEach((old) => old.remove());
    if (key === null) return;
    const { x, y, width, height } = cells.get(svg).get(key).getBBox();
    if (width) svg.append(make("svg:rect", { class: `frame ${name}`, x, y, width, height, rx: 1 }));
  }
  function frames() {
    for (const svg of maps) frame(svg, "kept", chosen);
  }
  function preview(svg, key) {
    for (const map of maps) frame(map, "seen", map === svg ? key : null);
    showCard(key ?? chosen);
  }
  function neighbour(svg, key, pressed) {
    const keys = [...cells.get(svg).keys()].map((other) => other.split("-").map(Number));
    const [layer, head] = key.split("-").map(Number);
    const row = keys.filter((other) => other[0] === layer);
    const column = keys.filter((other) => other[1] === head);
    const at = (list, axis, value) => list.find((other) => other[axis] === value);
    const target = {
      ArrowLeft: () => at(row, 1, head - 1),
      ArrowRight: () => at(row, 1, head + 1),
      ArrowUp: () => at(column, 0, layer - 1),
      ArrowDown: () => at(column, 0, layer + 1),
      Home: () => row[0],
      End: () => row[row.length - 1],
      PageUp: () => column[0],
      PageDown: () => column[column.length - 1],
    }[pressed];
    return target && (target() ?? [layer, head]).join("-");
  }
  for (const svg of maps) {
    svg.setAttribute("role", "listbox");
    for (const [key, mark] of cells.get(svg)) {
      mark.setAttribute("role", "option");
      mark.setAttribute("aria-label", $("title", mark).textContent);
      mark.setAttribute("tabindex", "-1");
    }
    const target = (event) => event.target.closest(".mark");
    svg.addEventListener("pointerover", (event) => target(event) && preview(svg, keyOf(target(event))));
    svg.addEventListener("pointerleave", () => preview(svg, null));
    svg.addEventListener("focusin", (event) => target(event) && preview(svg, keyOf(target(event))));
    svg.addEventListener("focusout", () => preview(svg, null));
    svg.addEventListener("keydown", (event) => {
      if (!target(event)) return;
      const key = keyOf(target(event));
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        choose(key);
        return;
      }
      const next = neighbour(svg, key, event.key);
      if (!next) return;
      event.preventDefault();
      roving(svg, next);
      cells.get(svg).get(next).focus();
    });
  }
  function roving(svg, key) {
    for (const [other, mark] of cells.get(svg)) mark.setAttribute("tabindex", other === key ? "0" : "-1");
  }
  document.addEventListener("click", (event) => {
    const mark = event.target.closest(".mark");
    if (mark) choose(keyOf(mark));
  });
  for (const radio of $$("input[name=measure]")) {
    radio.addEventListener("change", () => showMeasure(radio.value));
  }
  function showMeasure(name) {
    for (const figure of $$(".heat-figures figure")) figure.hidden = figure.dataset.figure !== name;
    frames();
  }

  // ---- one head is chosen on the whole page
  function choose(key) {
    chosen = key;
    frames();
    for (const svg of maps) {
      roving(svg, key);
      for (const [other, mark] of cells.get(svg)) mark.setAttribute("aria-selected", String(other === key));
    }
    showCard(key);
    for (const row of $$("#head-table tbody tr")) row.classList.toggle("chosen", row.dataset.head === key);
    if (DATA.effects) showEffects(key);
    if (DATA.gallery.length) showGallery(key);
  }

  // ---- gallery
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
  const items = DATA.gallery.map((item) => {
    const counts = new Uint32Array(bytes(item.counts));
    const starts = new Uint32Array(counts.length + 1);
    counts.forEach((count, i) => { starts[i + 1] = starts[i] + count; });
    return {
      ...item, starts,
      sink: new Int32Array(bytes(item.sink)), sinkMass: new Float32Array(bytes(item.sinkMass)),
      event: new Uint8Array(bytes(item.event)),
      keys: item.count > 65536 ? new Uint32Array(bytes(item.keys)) : new Uint16Array(bytes(item.keys)),
      masses: new Uint8Array(bytes(item.masses)),
    };
  });
  const shade = (mass) => `rgba(var(--heat), ${Math.min(1, 0.12 + 0.88 * mass).toFixed(2)})`;
  const digits = (mass) => (mass >= 0.1 ? mass.toFixed(2) : mass.toFixed(3));

  function received(item, key) {
    const [layer, head] = key.split("-").map(Number);
    const at = layer * item.heads + head;
    const mass = new Map();
    for (let i = item.starts[at]; i < item.starts[at + 1]; i++) mass.set(item.keys[i], item.masses[i] / 255);
    return { mass, sink: item.sink[at], sinkMass: item.sinkMass[at], event: item.event[at] === 1 };
  }
  function places(item) {
    if (item.kind !== "picture" || !item.rows) return [];
    const patches = item.roles
      ? item.roles.flatMap((role, token) => (role === "patch" ? [token] : []))
      : Array.from({ length: item.rows * item.cols }, (_, i) => item.prefix + i);
    return patches.map((token, i) => [token, Math.floor(i / item.cols), i % item.cols]);
  }
  const readable = (text) => text.replaceAll("\n", "⏎\u200b") || "∅";
  function tokenName(item, token) {
    const role = item.roles ? item.roles[token] : "token";
    const place = places(item).find(([other]) => other === token);
    if (place) return `patch in row ${place[1]}, column ${place[2]}`;
    const text = item.tokens && token < item.tokens.length ? ` “${readable(item.tokens[token].trim() || item.tokens[token])}”` : "";
    return `${role}${text} at position ${token}`;
  }
  function chip(item, token, state) {
    const mass = state.mass.get(token) ?? 0;
    const role = item.roles ? item.roles[token] : "token";
    const sink = token === state.sink ? " sink" : "";
    const chip = make("span", { class: `chip${sink}${mass > 0.45 ? " strong" : ""}` }, `${role} ${token}: ${mass ? digits(mass) : "< 0.01"}`);
    if (mass) chip.style.background = shade(mass);
    return chip;
  }
  function drawPicture(item, state) {
    const grid = places(item);
    const overlay = make("svg:svg", { viewBox: `0 0 ${item.cols} ${item.rows}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    for (const [token, row, column] of grid) {
      const mass = state.mass.get(token);
      if (!mass) continue;
      const patch = make("svg:rect", { x: column, y: row, width: 1, height: 1 });
      patch.style.fill = shade(mass);
      overlay.append(patch);
    }
    const place = grid.find(([token]) => token === state.sink);
    for (const kind of place ? ["sink under", "sink"] : []) {
      overlay.append(make("svg:rect", { class: kind, x: place[2], y: place[1], width: 1, height: 1 }));
    }
    const shown = make("div", { class: "picture" }, make("img", { src: item.picture, alt: `Input ${item.name}` }), overlay);
    const inGrid = new Set(grid.map(([token]) => token));
    const others = Array.from({ length: item.count }, (_, i) => i).filter((token) => !inGrid.has(token));
    const few = others.length <= 24 ? others : others.filter((token) => state.mass.has(token) || token === state.sink);
    return few.length ? [shown, make("div", { class: "chips" }, ...few.map((token) => chip(item, token, state)))] : [shown];
  }
  function drawText(item, state) {
    const box = make("div", { class: "tokens", tabindex: "0", role: "group", "aria-label": `Tokens of ${item.name}` });
    const spaced = item.tokens.some((text) => /^\s|\s$/.test(text));
    item.tokens.forEach((text, token) => {
      if (token && !spaced && !text.startsWith("##")) box.append(" "); // WordPiece keeps no spaces
      const mass = state.mass.get(token) ?? 0;
      const sink = token === state.sink;
      const span = make("span", { class: `token${sink ? " sink" : ""}${mass > 0.45 ? " strong" : ""}` }, readable(text));
      if (mass) {
        span.style.background = shade(mass);
        span.title = `position ${token}, mass ${digits(mass)}`;
      }
      box.append(span);
    });
    const rest = item.count - item.tokens.length;
    return rest > 0 ? [box, make("p", { class: "hint" }, `Shown: the first ${item.tokens.length} of ${item.count} tokens.`)] : [box];
  }
  function drawStrip(item, state) {
    const wide = Math.ceil(item.count / DATA.mostTokens);
    const strip = make("div", { class: "strip", "aria-hidden": "true" });
    for (let token = 0; token < item.count; token += wide) {
      const bar = make("i");
      let most = 0;
      for (let other = token; other < Math.min(token + wide, item.count); other++) {
        most = Math.max(most, state.mass.get(other) ?? 0);
        if (other === state.sink) bar.className = "sink";
      }
      if (most) bar.style.background = shade(most);
      strip.append(bar);
    }
    return [strip];
  }
  function drawItem(item, key) {
    const state = received(item, key);
    const drawn = item.kind === "picture" && item.picture && item.rows ? drawPicture(item, state)
      : item.tokens ? drawText(item, state) : drawStrip(item, state);
    const said = state.sink < 0 ? " no candidate for a sink"
      : ` sink: ${tokenName(item, state.sink)}, mass ${digits(state.sinkMass)}${state.event ? ", an event" : ""}`;
    return make("figure", { class: "item" }, ...drawn, make("figcaption", {}, make("b", {}, make("bdi", {}, item.name)), said));
  }
  function showGallery(key) {
    const box = $("#gallery-items");
    box.classList.toggle("texts", items.some((item) => item.kind !== "picture"));
    box.replaceChildren(...items.map((item) => drawItem(item, key)));
    $("#gallery-head").value = key;
    for (const button of $$("[data-pick]")) button.setAttribute("aria-pressed", String(button.dataset.pick === key));
  }
  $("#gallery-head")?.addEventListener("change", (event) => choose(event.target.value));
  for (const button of $$("[data-pick]")) button.addEventListener("click", () => choose(button.dataset.pick));

  // ---- table: sort by a heading, filter by words and kind, choose by click
  const table = $("#head-table");
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({
    row, kind: row.cells[1].textContent, verdict: row.cells[3].textContent, words: row.textContent.toLowerCase(), name: row.cells[0].textContent.toLowerCase(),
    values: [...row.cells].map((cell) => {
      const text = cell.dataset.v ?? cell.textContent;
      return text === "" ? null : Number.isNaN(Number(text)) ? text : Number(text);
    }),
  }));
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    $("button", heading).addEventListener("click", () => {
      const numeric = rows.some(({ values }) => typeof values[column] === "number");
      const now = heading.getAttribute("aria-sort");
      const sign = (now === "none" ? numeric && column > 0 : now === "ascending") ? -1 : 1;
      for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const missing = (value) => value === null;
      rows.sort(({ values: a }, { values: b }) => {
        const [x, y] = [a[column], b[column]];
        if (missing(x) || missing(y)) return missing(x) - missing(y);
        return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)));
      });
      body.append(...rows.map(({ row }) => row));
    });
  });
  function filter() {
    const text = $("#filter-text").value.trim().toLowerCase();
    const kind = $("#filter-kind").value;
    const verdict = $("#filter-verdict")?.value ?? "";
    let shown = 0;
    for (const { row, kind: own, verdict: judged, words, name } of rows) {
      const fits = text === "" || (/^l\d+$/.test(text) ? name.startsWith(`${text}.`) : /^l\d+\.h\d+$/.test(text) ? name === text : words.includes(text));
      row.hidden = !(fits && (kind === "" || own === kind) && (verdict === "" || judged === verdict));
      shown += row.hidden ? 0 : 1;
    }
    $("#filter-count").textContent = `${shown} of ${rows.length}`;
  }
  $("#filter-text").addEventListener("input", filter);
  $("#filter-kind").addEventListener("change", filter);
  $("#filter-verdict")?.addEventListener("change", filter);
  body.addEventListener("click", (event) => choose(event.target.closest("tr").dataset.head));

  document.documentElement.classList.remove("no-script");
  showMeasure($("input[name=measure]:checked").value);
  choose(chosen);
  matchMedia("(max-width: 640px)").addEventListener("change", frames);
})();
