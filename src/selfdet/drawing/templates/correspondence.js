// Point at a cell of the first view and see what the second holds that is like it. Builds its own elements; text is set
// as text, never as markup.
(() => {
  const GAP = 0.05;
  const SHADES = [[126, 3, 168], [183, 40, 145], [224, 90, 105], [248, 149, 64], [252, 206, 37], [240, 249, 33]];
  const SIGNS = [[null, 1.8, "right"], [null, 0.7, "beside the right cell"], [[5, 4], 1, "wrong"]];

  const html = (name, parent, text) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  };
  const svg = (name, parent, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    parent.append(made);
    return made;
  };
  const shade = (share) => {
    const place = Math.min(Math.max(share, 0), 1) * (SHADES.length - 1);
    const low = Math.min(Math.floor(place), SHADES.length - 2);
    const mixed = SHADES[low].map((value, i) => Math.round(value + (SHADES[low + 1][i] - value) * (place - low)));
    return `rgb(${mixed.join(",")})`;
  };
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  function explore(root, data) {
    let model = data.models.length - 1, pair = 0, cell = null, held = false;
    const controls = html("div", root);
    controls.className = "controls";
    const pick = (words, names, chosen, change) => {
      const label = html("label", controls, words + " ");
      const list = html("select", label);
      names.forEach((name, i) => { html("option", list, name).value = i; });
      list.value = chosen;
      list.addEventListener("change", () => { change(Number(list.value)); draw(); });
    };
    pick("backbone", data.models.map((each) => each.name), model, (value) => { model = value; });
    pick("image", data.pairs.map((each) => each.name), pair, (value) => { pair = value; cell = null; });
    const label = html("label", controls, "least similarity ");
    const least = html("input", label);
    Object.assign(least, { type: "range", min: 0, max: 1, step: 0.01, value: data.threshold });
    const shown = html("output", label);
    least.addEventListener("input", () => draw());
    const picture = svg("svg", root, { tabindex: 0, role: "application" });
    const legend = html("div", root);
    legend.className = "legend";
    const said = html("p", root);
    said.setAttribute("aria-live", "polite");

    const grid = () => data.models[model].grid;
    const size = () => data.pairs[pair].size;
    const step = () => size() / grid();
    const start = (side) => side * size() * (1 + GAP);
    const centre = (index, side) => [
      start(side) + ((index % grid()) + 0.5) * step(), (Math.floor(index / grid()) + 0.5) * step(),
    ];
    const named = (index) => `row ${Math.floor(index / grid()) + 1}, column ${(index % grid()) + 1}`;

    function square(index, side, attributes) {
      const [x, y] = centre(index, side);
      return svg("rect", picture, { x: x - step() / 2, y: y - step() / 2, width: step(), height: step(), ...attributes });
    }
    function frame(index, side) {
      square(index, side, { class: "edge", fill: "none", stroke: "black", "stroke-width": size() / 80 });
      square(index, side, { class: "frame", fill: "none", stroke: "white", "stroke-width": size() / 160 });
    }
    function scale(low, high) {
      const part = html("span", legend, `similarity ${low.toFixed(2)}`);
      const bar = svg("svg", part, { viewBox: "0 0 96 10", width: 96, height: 10 });
      for (let i = 0; i < 32; i++) svg("rect", bar, { x: 3 * i, y: 0, width: 3, height: 10, fill: shade(i / 31) });
      part.append(high.toFixed(2));
    }
    function explain(low, high) {
      legend.replaceChildren();
      scale(low, high);
      if (cell !== null || !data.models[model].pairs[pair].points) return;
      for (const [dashes, width, words] of SIGNS) {
        const part = html("span", legend);
        svg("line", svg("svg", part, { viewBox: "0 0 30 10", width: 30, height: 10 }), {
          x1: 0, x2: 30, y1: 5, y2: 5, stroke: "currentColor", "stroke-width": 1.6 * width,
          "stroke-dasharray": dashes ? dashes.join(" ") : "none",
        });
        part.append(words);
      }
    }
    // Level lines of one row would hide each other: each is bent by its own share of the row's height.
    function bends(kept) {
      const rows = new Map();
      for (const [q, k] of kept) {
        const row = Math.floor(q / grid());
        if (row === Math.floor(k / grid())) rows.set(row, [...(rows.get(row) ?? []), q].sort((a, b) => a - b));
      }
      return (q, k) => {
        const row = Math.floor(q / grid());
        if (row !== Math.floor(k / grid())) return 0;
        const others = rows.get(row);
        return ((others.indexOf(q) - (others.length - 1) / 2) / others.length) * 0.9 * step();
      };
    }
    function line(from, to, similarity, kind, bend) {
      const [[x1, y1], [x2, y2]] = [centre(from, 0), centre(to, 1)];
      const [dashes, width] = SIGNS[kind];
      const thin = size() / 200;
      const low = Number(least.value);
      const ink = shade(low < 1 ? (similarity - low) / (1 - low) : 1);
      for (const [stroke, more] of [["black", 1], [ink, 0]])
        svg("path", picture, {
          d: `M ${x1} ${y1} Q ${(x1 + x2) / 2} ${(y1 + y2) / 2 + 2 * bend} ${x2} ${y2}`, fill: "none", stroke,
          class: more ? "under" : "match", "stroke-width": (width + more) * thin,
          "stroke-dasharray": dashes ? dashes.map((part) => part * thin).join(" ") : "none",
        });
      for (const [x, y] of [[x1, y1], [x2, y2]])
        svg("circle", picture, { cx: x, cy: y, r: 2.4 * thin, fill: ink, stroke: "black", "stroke-width": thin / 2 });
    }

    function draw() {
      const found = data.models[model].pairs[pair];
      found.bytes ??= bytes(found.similarity);
      const cells = grid() * grid();
      const similarity = (q, k) => found.bytes[q * cells + k] / 127.5 - 1;
      shown.textContent = Number(least.value).toFixed(2);
      picture.replaceChildren();
      picture.setAttribute("viewBox", `0 0 ${start(1) + size()} ${size()}`);
      picture.setAttribute("aria-label", `Two views of ${data.pairs[pair].name}; arrow keys choose a cell of the first`);
      [data.pairs[pair].query, data.pairs[pair].key].forEach((href, side) => {
        svg("image", picture, { href, x: start(side), y: 0, width: size(), height: size() });
      });
      const kept = found.mutual.filter(([q, k]) => similarity(q, k) >= Number(least.value));
      if (cell === null) {
        explain(Number(least.value), 1);
        const bend = bends(kept);
        kept.forEach(([q, k, kind]) => line(q, k, similarity(q, k), kind ?? 0, bend(q, k)));
        const right = kept.filter(([, , kind]) => kind === 0).length;
        const judged = found.points ? `, ${right} of them right` : "";
        const tally = kept.length
          ? `${kept.length} of ${found.mutual.length} mutual nearest cells are that similar${judged}.`
          : `None of ${found.mutual.length} mutual nearest cells is that similar: lower the least similarity.`;
        said.textContent = `${tally} Point at a cell of the first view.`;
        return;
      }
      const row = [...Array(cells).keys()].map((k) => similarity(cell, k));
      const [low, high] = [Math.min(...row), Math.max(...row)];
      explain(low, high);
      row.forEach((value, k) => square(k, 1, {
        class: "heat", fill: shade((value - low) / Math.max(high - low, 1e-6)), "fill-opacity": 0.6,
      }));
      const best = row.indexOf(high);
      frame(cell, 0);
      frame(best, 1);
      const words = [`From ${named(cell)}: most similar is ${named(best)} (${high.toFixed(2)})`];
      const mutual = found.mutual.find(([q]) => q === cell);
      words.push(mutual ? `mutual nearest is ${named(mutual[1])}` : "no cell is mutual nearest");
      if (mutual) line(cell, mutual[1], similarity(cell, mutual[1]), mutual[2] ?? 0, 0);
      if (mutual && found.points) words.push(SIGNS[mutual[2]][2]);
      if (found.points) {
        const point = found.points[cell];
        if (point) svg("circle", picture, {
          class: "truth", cx: start(1) + point[0], cy: point[1], r: size() / 28, fill: "none", stroke: "white",
          "stroke-width": size() / 110,
        });
        words.push(point ? "the ring is the same point" : "the second view does not show this point");
      }
      said.textContent = words.join("; ") + ".";
    }

    function under(event) {
      const box = picture.getBoundingClientRect();
      const scale = (start(1) + size()) / box.width;
      const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
      if (x < 0 || y < 0 || x >= size() || y >= size()) return null;
      return Math.floor(y / step()) * grid() + Math.floor(x / step());
    }
    function choose(next) {
      if (next !== cell) { cell = next; draw(); }
    }
    picture.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse" && !held) choose(under(event));
    });
    picture.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse" && !held) choose(null);
    });
    // A press keeps the cell, also for fingers, which can't hover; one beside the first view lets it go.
    picture.addEventListener("pointerdown", (event) => {
      const next = under(event);
      held = next !== null && !(held && next === cell);
      choose(held || event.pointerType === "mouse" ? next : null);
    });
    picture.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
      if (event.key === "Escape") { held = false; choose(null); return; }
      if (!(event.key in moves)) return;
      event.preventDefault();
      const side = grid();
      const [down, right] = cell === null ? [0, 0] : moves[event.key];
      const now = cell ?? Math.floor(side / 2) * side + Math.floor(side / 2);
      const [r, c] = [Math.floor(now / side) + down, (now % side) + right];
      held = true;
      choose(Math.min(Math.max(r, 0), side - 1) * side + Math.min(Math.max(c, 0), side - 1));
    });
    draw();
  }

  for (const root of document.querySelectorAll(".correspondence"))
    explore(root, JSON.parse(root.querySelector("script").textContent));
})();
