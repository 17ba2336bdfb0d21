"use strict";
(() => {
  const { panels, pool, share, topics, rollouts, only, rows: rest } = JSON.parse(document.getElementById("data").textContent);
  for (const panel of panels) {
    panel.traces = panel.traces.map(([style, meta, x, y]) => ({ ...pool[style], meta: pool[meta], x: pool[x], y: pool[y] }));
  }
  const byId = (id) => document.getElementById(id);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const panelOf = new Map(panels.map((panel) => [panel.id, panel]));
  const members = Object.fromEntries(Object.entries(topics).map(([name, arms]) => [name, new Set(arms)]));
  const chips = all(".chip");
  const coarse = matchMedia("(pointer: coarse)").matches;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const FEW = 12; // arms: of more, single seeds are not drawn
  const ROWS = 1000; // of the numbers of one figure
  const MISSING = "–";
  // Ticks are plain decimals, and powers of ten from 10^±5 on; plotly's own choice would be "−6n" and "100µ".
  const TICKS = { exponentformat: "power", minexponent: 4, separatethousands: true };

  // ---- theme

  const probe = document.body.appendChild(document.createElement("span"));
  probe.hidden = true;
  let known = new Map();
  const colour = (name) => {
    if (!known.has(name)) {
      probe.style.color = `var(--${name})`;
      known.set(name, getComputedStyle(probe).color);
    }
    return known.get(name);
  };
  const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const theme = byId("theme");
  const named = () => { theme.textContent = isDark() ? "Light mode" : "Dark mode"; };
  const themed = () => {
    known = new Map();
    named();
    redraw();
  };
  addEventListener("beforeprint", () => panels.filter((panel) => "stale" in byId(panel.id).dataset).forEach(draw));
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    themed();
  });
  dark.addEventListener("change", themed);

  // ---- what is chosen

  const focus = byId("focus"), smoothing = byId("smooth"), benchmarks = all(".benchmark"), controls = all(".control");
  const pressed = (chip) => chip.getAttribute("aria-pressed") === "true";
  const press = (chip, on) => chip.setAttribute("aria-pressed", String(on));
  const chosenArms = () => new Set(chips.filter(pressed).map((chip) => chip.dataset.arm));
  const smooth = () => smoothing?.checked ?? false;
  const benchmark = () => benchmarks[0]?.value ?? only; // of one benchmark the average is the same again
  const choicesOf = (panel) => Object.fromEntries(
    controls.filter((control) => control.dataset.panel === panel.id).map((control) => [control.dataset.key, control.value]));

  /** The traces that a figure shows now. */
  function shownTraces(panel) {
    const chosen = chosenArms(), within = members[panel.topic ?? focus?.value];
    const arms = within ? new Set([...chosen].filter((arm) => within.has(arm))) : chosen;
    const choices = choicesOf(panel), few = arms.size <= FEW;
    const fits = (meta) =>
      (meta.arm === undefined || arms.has(meta.arm)) &&
      (few || !meta.faint) &&
      (meta.smooth === undefined || meta.smooth === smooth()) &&
      (meta.benchmark === undefined || benchmark() === null || meta.benchmark === benchmark()) &&
      Object.entries(choices).every(([key, value]) => meta[key] === undefined || meta[key] === value);
    return panel.traces.filter((trace) => fits(trace.meta)).map((trace) => (trace.meta.arms ? withoutPoints(trace, chosen) : trace));
  }
  function withoutPoints(trace, arms) {
    const kept = trace.meta.arms.map((arm, index) => (arms.has(arm) ? index : -1)).filter((index) => index >= 0);
    const pick = (values) => kept.map((index) => values[index]);
    const { array, arrayminus } = trace.error_y;
    return { ...trace, x: pick(trace.x), y: pick(trace.y), error_y: { ...trace.error_y, array: pick(array), arrayminus: pick(arrayminus) } };
  }

  // ---- figures

  const rowsOf = (traces) => [...new Set(traces.flatMap((trace) => (trace.yaxis ? [] : trace.y)))];
  /** Marks that look alike as one trace: hundreds take long to draw. */
  function together(traces) {
    const groups = new Map();
    for (const trace of traces) {
      const alike = trace.mode === "markers" ? JSON.stringify([trace.meta.slot, trace.marker, "error_x" in trace, "text" in trace]) : groups.size;
      groups.set(alike, [...(groups.get(alike) ?? []), trace]);
    }
    return [...groups.values()].map((group) => {
      if (group.length === 1) return group[0];
      const join = (values) => group.flatMap(values), [first] = group;
      const joined = {
        ...first,
        x: join((trace) => trace.x),
        y: join((trace) => trace.y),
        customdata: join((trace) => trace.x.map(() => trace.name)),
        hovertemplate: join((trace) => trace.x.map(() => trace.hovertemplate.replace("%{fullData.name}", "%{customdata}"))),
      };
      if (first.text) joined.text = join((trace) => trace.text);
      if (first.error_x) {
        const [array, arrayminus] = ["array", "arrayminus"].map((end) => join((trace) => trace.error_x[end]));
        joined.error_x = { ...first.error_x, array, arrayminus };
      }
      return joined;
    });
  }
  /** Of labelled lines that are close to each other the first has its label at the left end, the second at the right. */
  function apart(traces) {
    const placed = [];
    return traces.map((trace) => {
      if (trace.mode !== "lines+text") return trace;
      const near = placed.filter((y) => Math.abs(y - trace.y[0]) < 8).length;
      placed.push(trace.y[0]);
      if (!near) return trace;
      return near === 1 ? { ...trace, text: [...trace.text].reverse(), textposition: "top left" } : { ...trace, mode: "lines" };
    });
  }
  function draw(panel) {
    const ink = colour("ink"), muted = colour("muted"), grid = colour("grid");
    const shown = shownTraces(panel);
    const many = chosenArms().size > FEW;
    const traces = apart(panel.tall ? together(shown) : shown).map((trace) => {
      const own = colour(`arm-${trace.meta.slot ?? "teacher"}`);
      const coloured = { ...trace, textfont: { color: own }, showlegend: !trace.meta.faint };
      for (const part of ["line", "marker", "error_x", "error_y"]) if (trace[part]) coloured[part] = { ...trace[part], color: own };
      if (trace.type === "bar" && trace.error_x) coloured.error_x.color = ink;
      if (!many && trace.type === "scatter") coloured.cliponaxis = false; // whole marks at 0 and 100 %
      if (many && trace.mode === "lines+markers" && trace.x.length > 1 && !trace.meta.arms) coloured.mode = "lines";
      return coloured;
    });
    const axis = (given) => ({ ...given, ...TICKS, gridcolor: grid, linecolor: grid, zerolinecolor: muted, tickcolor: grid, fixedrange: coarse || given.fixedrange });
    const layout = { ...panel.layout };
    if (panel.tall) layout.yaxis = { ...layout.yaxis, categoryorder: "array", categoryarray: rowsOf(shown) };
    for (const name of ["xaxis", "yaxis", "yaxis2"]) if (panel.layout[name]) layout[name] = axis(panel.layout[name]);
    const choices = choicesOf(panel), title = Object.values(choices).map((value) => panel.titles[value]).find((found) => found !== undefined);
    if (title !== undefined) {
      const named = panel.id === "cost" ? "xaxis" : "yaxis";
      layout[named] = { ...layout[named], title: { ...layout[named].title, text: title } };
      if (title.endsWith("%")) layout[named].autorangeoptions = share;
    }
    Object.assign(layout, {
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: muted },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: ink } },
      hoverlabel: { bgcolor: colour("surface"), bordercolor: grid, font: { color: ink } },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
    });
    layout.showlegend ||= panel.topic !== null && !panel.tall;
    if (layout.showlegend) layout.margin = { ...layout.margin, t: 44 };
    const place = byId(panel.id);
    delete place.dataset.stale;
    writeNumbers(panel, shown);
    return Plotly.react(place, traces, layout, { displaylogo: false, responsive: true, displayModeBar: false, scrollZoom: false });
  }
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      draw(panelOf.get(entry.target.id));
    }
  }, { rootMargin: "50%" });
  /** What is near is drawn anew, the rest when it comes near; heights are set at once, so that nothing moves later. */
  function redraw() {
    for (const panel of panels) {
      const place = byId(panel.id);
      if (panel.tall) {
        place.style.height = `${5 + 1.75 * Math.max(2, rowsOf(shownTraces(panel)).length)}rem`;
      }
      place.dataset.stale = "true";
      seen.unobserve(place);
      seen.observe(place);
    }
  }

  // ---- the numbers of a figure, for those who do not see it

  function writeNumbers(panel, shown) {
    const place = document.querySelector(`.numbers[data-panel="${panel.id}"]`);
    if (!place.open) return;
    const text = (label) => String(label ?? "").replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&"); // plotly's labels are escaped
    const round = (value) => (typeof value === "number" ? String(+value.toPrecision(4)) : text(value));
    const rows = [];
    for (const trace of shown) {
      if (trace.hoverinfo === "skip") continue;
      const bar = trace.error_y ?? trace.error_x, along = trace.error_y ? trace.y : trace.x;
      trace.x.forEach((x, index) => {
        const low = bar?.arrayminus?.[index], high = bar?.array?.[index];
        const ends = low == null || high == null ? "" : `${round(along[index] - low)} to ${round(along[index] + high)}`;
        rows.push([text(trace.name), round(x), round(trace.y[index]), ends]);
      });
    }
    const table = document.createElement("table"), head = table.createTHead().insertRow(), body = table.createTBody();
    const titles = [panel.layout.xaxis.title.text || "x", panel.layout.yaxis.title.text || "y"].map(text);
    for (const title of ["Run", ...titles, "95 % interval"]) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = title;
      head.append(cell);
    }
    for (const row of rows.slice(0, ROWS)) {
      const line = body.insertRow();
      row.forEach((value) => { line.insertCell().textContent = value; });
    }
    const note = document.createElement("p");
    note.className = "note";
    note.textContent = rows.length > ROWS ? `The first ${ROWS} of ${rows.length} rows; all are in the CSV files beside this page.` : "";
    place.querySelector(".scroll").replaceChildren(table, note);
  }
  all(".numbers").forEach((place) => place.addEventListener("toggle", () => {
    const panel = panelOf.get(place.dataset.panel);
    writeNumbers(panel, shownTraces(panel));
  }));

  // ---- selection

  const status = byId("status");
  function selected() {
    countShown();
    chooseAnswers(chosenArms());
    showTokens();
    redraw();
  }
  function countShown() {
    const only = members[focus?.value], offered = chips.filter((chip) => only === undefined || only.has(chip.dataset.arm));
    status.textContent = `${offered.filter(pressed).length} of ${offered.length} runs shown`;
  }
  function chooseAnswers(arms) {
    all("#table-answers tbody tr").forEach((row) => { row.classList.toggle("unchosen", !arms.has(row.dataset.arm)); });
  }
  function findChips() {
    const wanted = (byId("find")?.value ?? "").toLowerCase(), only = members[focus?.value];
    chips.forEach((chip) => { chip.hidden = !chip.textContent.toLowerCase().includes(wanted) || (only !== undefined && !only.has(chip.dataset.arm)); });
  }
  chips.forEach((chip) => chip.addEventListener("click", () => {
    press(chip, !pressed(chip));
    selected();
    remember();
  }));
  for (const [id, on] of [["all", true], ["none", false]]) {
    byId(id)?.addEventListener("click", () => {
      chips.filter((chip) => !chip.hidden).forEach((chip) => press(chip, on));
      selected();
      remember();
    });
  }
  byId("find")?.addEventListener("input", findChips);
  const changed = () => { findChips(); countShown(); redraw(); remember(); };
  [focus, smoothing].forEach((choice) => choice?.addEventListener("change", changed));
  benchmarks.forEach((choice) => choice.addEventListener("change", () => {
    benchmarks.forEach((other) => { other.value = choice.value; });
    changed();
  }));
  controls.forEach((control) => control.addEventListener("change", () => {
    draw(panelOf.get(control.dataset.panel));
    remember(control.dataset.panel);
  }));

  // ---- tokens of a rollout

  const whose = byId("rollouts");
  rollouts.forEach((rollout, index) => whose?.append(new Option(`${rollout.label}, step ${rollout.step}`, String(index))));
  whose?.addEventListener("change", () => { showTokens(); remember("tokens"); });
  function showTokens() {
    if (!whose || !rollouts.length) return;
    const { responses } = rollouts[Number(whose.value)];
    const most = Math.max(...responses.flatMap((response) => response.advantage.map((value, index) => (response.learned[index] ? Math.abs(value ?? 0) : 0)))) || 1;
    byId("responses").replaceChildren(...responses.map((response) => {
      const row = document.createElement("div"), asked = document.createElement("p"), answer = document.createElement("p");
      row.className = "rollout";
      asked.className = "note";
      asked.textContent = response.problem;
      answer.className = "pieces";
      response.tokens.forEach((token, index) => {
        const advantage = response.advantage[index], ratio = response.log_ratio[index], learned = response.learned[index] === 1 && advantage !== null;
        const piece = document.createElement(learned ? "span" : "s");
        piece.textContent = token;
        piece.title = `${learned ? `advantage ${advantage}` : "not learned"}, log r ${ratio ?? "–"}`;
        if (learned) {
          piece.className = advantage > 0 ? "up" : "down";
          piece.style.setProperty("--strength", `${Math.round(80 * Math.abs(advantage) / most)}%`);
        }
        answer.append(piece, token.endsWith("↵") ? document.createElement("br") : "");
      });
      if (response.left_out) answer.append(` … ${response.left_out} more tokens`);
      row.append(asked, answer);
      return row;
    }));
  }

  // ---- tables

  /** Gives each cell of a table that becomes cards on narrow screens the title of its column. */
  function labelled(table, rows) {
    if (!table.classList.contains("cards")) return;
    const titles = [...table.tHead.rows[0].cells].map((head) => head.textContent.trim());
    for (const row of rows) [...row.cells].forEach((cell, index) => { cell.dataset.label = titles[index]; });
  }
  /** Adds the rows of a table that the page came without. */
  function complete(table) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0], arms = new Set(chips.map((chip) => chip.dataset.arm));
    const rows = (rest[table.id] ?? []).map(([arm, cells]) => {
      const row = document.createElement("tr");
      if (arms.has(arm)) row.dataset.arm = arm;
      cells.forEach((cell, index) => {
        const [text, interval, order] = Array.isArray(cell) ? cell : [cell, "", null];
        const place = row.appendChild(document.createElement(index ? "td" : "th")), head = heads[index];
        if (!index) place.scope = "row";
        place.className = head.classList[0];
        place.classList.toggle("long", text.length > 40);
        place.classList.toggle("none", text === MISSING);
        if (order !== null) place.dataset.order = order;
        const word = "pill" in head.dataset ? place.appendChild(document.createElement("span")) : place;
        word.textContent = text;
        if (word !== place) Object.assign(word, { className: "verdict" }).dataset.word = text;
        if (!head.classList.contains("spaced")) return;
        const span = document.createElement("span");
        span.className = "interval";
        span.textContent = interval;
        place.append(interval ? " " : "", span);
      });
      return row;
    });
    delete rest[table.id];
    body.append(...rows);
    labelled(table, rows);
    table.closest(".card").querySelector(".more")?.remove();
    if (rows.length && table.id === "table-answers") chooseAnswers(chosenArms());
  }
  for (const button of all(".more button")) button.addEventListener("click", () => complete(byId(button.getAttribute("aria-controls"))));
  for (const table of all("table")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    labelled(table, body.rows);
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      complete(table);
      const numeric = !["text", "prose"].includes(head.classList[0]);
      const first = numeric ? "descending" : "ascending";
      const now = head.getAttribute("aria-sort");
      const order = now === null ? first : now === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const key = (row) => row.cells[column].dataset.order ?? row.cells[column].textContent.trim();
      const rows = [...body.rows].map((row) => [key(row), row]).sort(([a], [b]) => {
        if (a === MISSING || b === MISSING) return (a === MISSING) - (b === MISSING);
        return sign * (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }));
      });
      body.append(...rows.map(([, row]) => row));
    }));
  }
  for (const input of all(".filter input")) {
    const table = byId(input.getAttribute("aria-controls")), rows = table.tBodies[0].rows;
    input.addEventListener("input", () => {
      complete(table);
      const wanted = input.value.toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
  }

  // ---- deep links: the address after # holds the figure and all that is chosen

  const short = (arm) => arm.slice(-8); // of its config's hash
  const atFirst = new Map(controls.map((control) => [control, control.value]));
  const firstFocus = focus?.value ?? "", firstSmooth = smooth(), firstArms = [...chosenArms()].map(short).join();
  function address(figure) {
    const state = new URLSearchParams();
    if (figure) state.set("figure", figure);
    const on = chips.filter(pressed).map((chip) => short(chip.dataset.arm)), off = chips.filter((chip) => !pressed(chip)).map((chip) => short(chip.dataset.arm));
    if (on.join() !== firstArms) state.set(on.length <= off.length ? "show" : "hide", (on.length <= off.length ? on : off).join());
    if ((focus?.value ?? "") !== firstFocus) state.set("of", focus.value);
    if (smooth() !== firstSmooth) state.set("smooth", String(smooth()));
    if (benchmarks.length && benchmarks[0].selectedIndex) state.set("benchmark", benchmark());
    if (whose?.selectedIndex > 0) state.set("rollouts", short(rollouts[Number(whose.value)].arm));
    controls.forEach((control) => { if (control.value !== atFirst.get(control)) state.set(`${control.dataset.panel}.${control.dataset.key}`, control.value); });
    return `#${state}`;
  }
  let figure = "";
  function remember(at = figure) {
    figure = at;
    history.replaceState(null, "", address(figure));
  }
  const has = (choice, value) => [...choice.options].some((option) => option.value === value);
  function restore() {
    if (!location.hash.includes("=")) return;
    const state = new URLSearchParams(location.hash.slice(1));
    for (const [name, on] of [["show", true], ["hide", false]]) {
      if (!state.has(name)) continue;
      const named = new Set(state.get(name).split(","));
      chips.forEach((chip) => press(chip, named.has(short(chip.dataset.arm)) === on));
    }
    if (focus && state.has("of") && has(focus, state.get("of"))) focus.value = state.get("of");
    if (smoothing && state.has("smooth")) smoothing.checked = state.get("smooth") === "true";
    benchmarks.forEach((choice) => { if (has(choice, state.get("benchmark"))) choice.value = state.get("benchmark"); });
    const index = rollouts.findIndex((rollout) => short(rollout.arm) === state.get("rollouts"));
    if (index >= 0) whose.value = String(index);
    for (const control of controls) {
      const value = state.get(`${control.dataset.panel}.${control.dataset.key}`);
      if (has(control, value)) control.value = value;
    }
    figure = state.get("figure") ?? "";
    const place = byId(`figure-${figure}`) ?? byId(figure);
    place?.scrollIntoView();
  }
  all(".link").forEach((link) => link.addEventListener("click", (event) => {
    event.preventDefault();
    remember(new URLSearchParams(link.hash.slice(1)).get("figure"));
    (byId(`figure-${figure}`) ?? byId(figure)).scrollIntoView();
  }));
  addEventListener("hashchange", () => {
    restore();
    findChips();
    if (status) selected();
  });

  named();
  theme.hidden = false;
  restore();
  findChips();
  if (status) selected();
  document.documentElement.dataset.ready = "true";
})();
