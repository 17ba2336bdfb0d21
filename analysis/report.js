"use strict";
(() => {
  const { panels, pool } = JSON.parse(document.getElementById("data").textContent);
  for (const panel of panels) {
    panel.traces = panel.traces.map(([style, meta, x, y]) => ({ ...pool[style], meta: pool[meta], x: pool[x], y: pool[y] }));
  }
  const chips = [...document.querySelectorAll(".chip")];
  const coarse = matchMedia("(pointer: coarse)").matches;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Set();

  // ---- theme

  const probe = document.body.appendChild(document.createElement("span"));
  probe.hidden = true;
  const colour = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const theme = document.getElementById("theme");
  const themed = () => {
    theme.setAttribute("aria-pressed", String(isDark()));
    drawn.forEach(draw);
  };
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    themed();
  });
  dark.addEventListener("change", themed);

  // ---- figures

  const chosenArms = () => new Set(chips.filter((chip) => chip.getAttribute("aria-pressed") === "true").map((chip) => chip.dataset.arm));
  const smooth = () => document.getElementById("smooth")?.checked ?? false;
  const benchmark = () => document.querySelector(".benchmark")?.value;
  const shows = (meta, arms) =>
    arms.has(meta.arm) &&
    (meta.smooth === undefined || meta.smooth === smooth()) &&
    (meta.benchmark === undefined || benchmark() === undefined || meta.benchmark === benchmark());

  function draw(panel) {
    const arms = chosenArms();
    const ink = colour("ink"), muted = colour("muted"), grid = colour("grid");
    const traces = panel.traces.filter((trace) => shows(trace.meta, arms)).map((trace) => {
      const own = colour(`arm-${trace.meta.slot ?? "teacher"}`);
      const coloured = { ...trace, textfont: { color: own } };
      for (const part of ["line", "marker", "error_x"]) if (trace[part]) coloured[part] = { ...trace[part], color: own };
      return coloured;
    });
    const axis = (given, more) => ({ ...given, gridcolor: grid, linecolor: grid, zerolinecolor: muted, tickcolor: grid, fixedrange: coarse, ...more });
    const layout = {
      ...panel.layout,
      xaxis: axis(panel.layout.xaxis),
      yaxis: axis(panel.layout.yaxis),
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: muted },
      hoverlabel: { bgcolor: colour("surface"), bordercolor: grid, font: { color: ink } },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
    };
    const place = document.getElementById(panel.id);
    if (panel.group === "differences") place.style.height = `${5 + 1.75 * Math.max(2, traces.length)}rem`;
    drawn.add(panel);
    return Plotly.react(place, traces, layout, { displaylogo: false, responsive: true, displayModeBar: false, scrollZoom: false });
  }
  const redraw = () => drawn.forEach(draw);

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      draw(panels.find((panel) => panel.id === entry.target.id));
    }
  }, { rootMargin: "50%" });
  document.querySelectorAll(".plot").forEach((place) => seen.observe(place));

  // ---- selection

  const status = document.getElementById("status");
  function selected() {
    const arms = chosenArms();
    status.textContent = `${arms.size} of ${chips.length} runs shown`;
    document.querySelectorAll("#table-answers tbody tr").forEach((row) => { row.hidden = !arms.has(row.dataset.arm); });
    redraw();
  }
  const press = (chip, on) => chip.setAttribute("aria-pressed", String(on));
  chips.forEach((chip) => chip.addEventListener("click", () => {
    press(chip, chip.getAttribute("aria-pressed") !== "true");
    selected();
  }));
  for (const [id, on] of [["all", true], ["none", false]]) {
    document.getElementById(id)?.addEventListener("click", () => {
      chips.filter((chip) => !chip.hidden).forEach((chip) => press(chip, on));
      selected();
    });
  }
  document.getElementById("find")?.addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase();
    chips.forEach((chip) => { chip.hidden = !chip.textContent.toLowerCase().includes(wanted); });
  });
  document.getElementById("smooth")?.addEventListener("change", redraw);
  const choices = [...document.querySelectorAll(".benchmark")];
  choices.forEach((choice) => choice.addEventListener("change", () => {
    choices.forEach((other) => { other.value = choice.value; });
    redraw();
  }));

  // ---- tables

  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const numeric = !head.classList.contains("text");
      const first = numeric ? "descending" : "ascending";
      const now = head.getAttribute("aria-sort");
      const order = now === null ? first : now === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const key = (row) => row.cells[column].dataset.order;
      const rows = [...body.rows].sort((one, other) => {
        const a = key(one), b = key(other);
        if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
        return sign * (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }));
      });
      body.append(...rows);
    }));
  }

  theme.setAttribute("aria-pressed", String(isDark()));
  if (status) selected();
  document.documentElement.dataset.ready = "true";
})();
