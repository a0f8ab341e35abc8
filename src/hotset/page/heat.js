// The heat view: layers are rows, their units columns, hottest first where the file is sorted so. The server
// counts since the model was loaded; what is new between two looks is what fires now.
import { heat } from "./api.js";
import { make } from "./messages.js";

const EVERY = 350; // milliseconds between two looks
const HALF_LIFE = 16; // tokens after which a firing counts half, in "now"
const LABEL = 30, SHARE = 92; // pixels for the layer's number and for its share computed
const MODES = { now: "Now", all: "Since start", profile: "In the file" };

const SHADE = 0.7; // seldom and a little less seldom are told apart better than often and always
const percent = (x) => `${x > 0 && x < 0.1 ? (100 * x).toFixed(1) : Math.round(100 * x)} %`;
const size = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : bytes > 0 ? `${Math.max(1, Math.round(bytes / 1e6))} MB` : "–");

export class HeatView {
  constructor(element, modelName) {
    this.element = element;
    this.modelName = modelName;
    this.mode = "now";
    this.visible = false;
    this.reset();
  }

  reset() {
    this.layers = [];
    this.told = null;
    this.model = "";
    if (this.visible) this.#look(this.turn);
  }

  show(visible) {
    if (visible === this.visible) return;
    this.visible = visible;
    this.turn = {};
    if (!visible) return;
    if (!this.canvas) this.#build();
    this.#look(this.turn);
  }

  #build() {
    this.canvas = make("canvas");
    this.canvas.setAttribute("role", "img");
    this.tip = make("div", { className: "tip", hidden: true });
    this.skipped = make("strong", { textContent: "–" });
    this.skippedOf = make("span");
    this.tokens = make("strong", { textContent: "–" });
    this.state = make("span");
    this.places = make("div", { className: "places" });
    this.note = make("p", { className: "note", hidden: true });
    this.legend = make("div", { className: "legend" });
    this.numbers = make("tbody");
    this.table = make("details", { className: "numbers" }, make("summary", { textContent: "Numbers by layer" }),
      make("table", {}, make("thead", {}, make("tr", {}, ...["Layer", "Units", "Computed now", "Since start", "On the GPU"].map((textContent) => make("th", { textContent, scope: "col" })))), this.numbers));
    this.table.addEventListener("toggle", () => this.#tabulate());
    this.buttons = Object.entries(MODES).map(([mode, textContent]) => make("button", { type: "button", textContent, value: mode, onclick: () => this.#switch(mode) }));
    const modes = make("div", { className: "tabs modes" }, ...this.buttons);
    modes.setAttribute("role", "group");
    modes.setAttribute("aria-label", "What is shown");
    const card = (title, ...inside) => make("div", { className: "card" }, make("h3", { textContent: title }), ...inside);
    this.map = make("div", { className: "map" }, this.canvas, this.tip);
    this.element.append(make("div", { className: "page" },
      make("div", { className: "cards" },
        card("Work skipped", this.skipped, this.skippedOf),
        card("Tokens watched", this.tokens, this.state),
        card("Where the weights lie", this.places)),
      this.note,
      make("div", { className: "above" }, make("h2", { textContent: "What fires" }), modes),
      this.map, this.legend, this.table));
    this.canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.canvas.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    new ResizeObserver(() => this.draw()).observe(this.map);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.#switch(this.mode);
  }

  #switch(mode) {
    this.mode = mode;
    for (const button of this.buttons) button.setAttribute("aria-pressed", String(button.value === mode));
    this.#describe();
    this.draw();
  }

  async #look(turn) {
    while (this.visible && this.turn === turn) {
      try {
        this.#take(await heat(this.modelName()));
        this.failed = "";
      } catch (error) {
        this.failed = error.message;
      }
      if (!this.visible || this.turn !== turn) return;
      this.#describe();
      this.draw();
      await new Promise((resolve) => setTimeout(resolve, this.failed ? 2000 : EVERY));
    }
  }

  #take(told) {
    if (told.model !== this.model || told.layers.length !== this.layers.length) {
      this.model = told.model;
      this.layers = told.layers.map(() => ({ rows: 0, computed: 0, fired: null, before: null }));
    }
    let fresh = 0;
    told.layers.forEach((layer, i) => {
      const seen = this.layers[i], before = seen.before ?? { rows: layer.rows, computed: layer.computed, fired: layer.fired };
      const rows = layer.rows - before.rows;
      seen.before = layer;
      seen.fired ??= layer.fired.map(() => 0);
      if (rows <= 0) return;
      fresh = Math.max(fresh, rows);
      const kept = 0.5 ** (rows / HALF_LIFE);
      seen.rows = kept * seen.rows + rows;
      seen.computed = kept * seen.computed + layer.computed - before.computed;
      seen.fired = seen.fired.map((x, k) => kept * x + layer.fired[k] - before.fired[k]);
    });
    this.told = told;
    if (fresh) this.active = performance.now();
  }

  // Shares of a layer: computed of what can be skipped, now or since the start; null: nothing was seen.
  #share(i, all) {
    const layer = this.told.layers[i], of = all ? layer : this.layers[i];
    if (!layer.units) return null; // it has no FFN
    if (layer.kind === "dense" || layer.on_device === layer.units) return 1;
    return of.rows > 0.5 ? (of.computed / of.rows + layer.on_device) / layer.units : null;
  }

  #frequency(i, k) {
    const layer = this.told.layers[i], start = k * layer.column;
    const units = Math.min(layer.column, layer.units - start);
    if (this.mode === "profile") return layer.profile?.[k] ?? null;
    if (layer.kind === "dense" || this.#place(layer, k) === "gpu") return 1;
    const of = this.mode === "all" ? layer : this.layers[i];
    return of.rows > 0.5 ? Math.min(1, of.fired[k] / (of.rows * units)) : null;
  }

  // What is left out: of all units, and of the bytes of all weights; null: nothing was seen.
  #skipped(all) {
    let computed = 0, units = 0, bytes = 0;
    this.told.layers.forEach((layer, i) => {
      const share = this.#share(i, all);
      if (share === null) return;
      computed += share * layer.units;
      units += layer.units;
      bytes += (1 - share) * layer.units * layer.unit_bytes;
    });
    return units ? { units: Math.max(0, 1 - computed / units), bytes: bytes / this.told.weights } : null;
  }

  #describe() {
    const { told } = this;
    if (!this.canvas) return;
    if (this.failed || !told?.layers.length) {
      this.note.textContent = this.failed || "The model is not in memory yet: it is loaded when it is first asked.";
      this.note.hidden = false;
      return;
    }
    const choosing = told.layers.filter((layer) => layer.kind !== "dense");
    const unit = choosing[0]?.kind ?? "neurons";
    const rows = Math.max(...told.layers.map((layer) => layer.rows));
    const skipped = this.#skipped(false) ?? this.#skipped(true);
    this.skipped.textContent = skipped ? percent(skipped.units) : "–";
    this.skippedOf.textContent = !choosing.length ? "every neuron is computed" : skipped ? `of the ${unit}; ${percent(skipped.bytes)} of all weights unread` : `of the ${unit}`;
    this.tokens.textContent = choosing.length ? rows.toLocaleString() : "–";
    const live = this.active && performance.now() - this.active < 1500;
    this.state.textContent = !choosing.length ? "nothing to count" : live ? "answering now" : rows ? "idle" : "ask something in the chat";
    this.state.classList.toggle("live", Boolean(live));
    const parts = [["gpu", "on the GPU", told.device], ["memory", "in memory", told.memory], ["file", "left in the file", told.file]];
    const total = parts.reduce((sum, [, , bytes]) => sum + bytes, 0) || 1;
    const bar = make("div", { className: "bar" });
    const names = make("div", { className: "names" });
    for (const [place, where, bytes] of parts) {
      if (bytes > 0) {
        const piece = make("i", { className: place });
        piece.style.flexGrow = String(bytes / total);
        bar.append(piece);
      }
      if (bytes > 0) names.append(make("span", {}, make("i", { className: place }), `${size(bytes)}${bytes === total ? ", all" : ""} ${where}`));
    }
    this.places.replaceChildren(bar, names);
    this.note.textContent = told.note ?? "";
    this.note.hidden = !told.note;
    const has = told.layers.some((layer) => layer.profile);
    this.buttons[2].hidden = !has;
    if (!has && this.mode === "profile") this.#switch("now");
    this.#explain(choosing, unit);
    this.#tabulate();
    const words = `${told.layers.length} layers; ${!skipped ? "nothing was decoded yet" : `${percent(skipped.units)} of ${unit} skipped`}`;
    this.canvas.setAttribute("aria-label", `Map of what fires: ${words}`);
  }

  #explain(choosing, unit) {
    const { told } = this, one = choosing[0] ?? told.layers.find((layer) => layer.units) ?? told.layers[0];
    const scale = make("div", { className: "scale" }, "never", make("i"), "for every token");
    const meaning = {
      now: `How often ${unit} ${unit === "experts" ? "are selected" : "fire"} at present (half-life ${HALF_LIFE} tokens)`,
      all: `How often ${unit} ${unit === "experts" ? "were selected" : "have fired"} since the model was loaded`,
      profile: "How often they fired on the text that the file was made with: hottest first",
    }[this.mode];
    const words = [choosing.length ? `${meaning}.` : "No share of them is left out."];
    words.push(`A cell is ${one.column === 1 ? `one of a layer's ${one.units}` : `${one.column} neighbours of a layer's ${one.units.toLocaleString()}`} ${unit}.`);
    if (choosing.length && unit === "neurons") words.push("Prompts are not counted: they compute all neurons.");
    if (told.device) words.push("What lies on the GPU is not counted, and has a plain colour.");
    words.push("Bars on the right: what each layer computes of its FFN.");
    const key = make("div", { className: "key" });
    if (this.#mixed()) {
      for (const [place, name] of [["gpu", "on the GPU"], ["memory", "in memory"], ["file", "in the file"]]) {
        if (told[place === "gpu" ? "device" : place]) key.append(make("span", {}, make("i", { className: place }), name));
      }
    }
    const text = words.join(" ");
    if (this.legend.dataset.text === text) return;
    this.legend.dataset.text = text;
    this.legend.replaceChildren(scale, key, make("p", { textContent: text }));
  }

  #mixed() { return Boolean(this.told.device || this.told.file); }

  #tabulate() {
    if (!this.table.open || !this.told) return;
    const cell = (text) => make("td", { textContent: text });
    this.numbers.replaceChildren(...this.told.layers.map((layer, i) => {
      const now = this.#share(i, false), all = this.#share(i, true);
      return make("tr", {}, cell(i), cell(`${layer.units.toLocaleString()} ${layer.kind === "experts" ? "experts" : "neurons"}`),
        cell(now === null ? "–" : percent(now)), cell(all === null ? "–" : percent(all)), cell(layer.on_device.toLocaleString()));
    }));
  }

  draw() {
    if (!this.canvas || !this.told?.layers.length || !this.visible) return;
    const layers = this.told.layers, width = this.map.clientWidth, mixed = this.#mixed();
    const row = Math.max(9, Math.min(20, Math.floor(470 / layers.length))), height = layers.length * row;
    const ratio = devicePixelRatio || 1, canvas = this.canvas;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.height = `${height}px`;
    }
    const style = getComputedStyle(this.element), color = (name) => style.getPropertyValue(name).trim();
    const dark = matches(style);
    const places = { gpu: PLACES.gpu[dark], memory: PLACES.memory[dark], file: PLACES.file[dark] };
    const draw = canvas.getContext("2d");
    draw.setTransform(ratio, 0, 0, ratio, 0, 0);
    draw.clearRect(0, 0, width, height);
    draw.font = `11px ${color("--sans")}`;
    draw.textBaseline = "middle";
    const share = width < 520 ? 64 : SHARE, span = width - LABEL - share;
    this.shape = { row, span };
    const ink = INK[dark], faint = FAINT[dark];
    layers.forEach((layer, i) => {
      const y = i * row, strip = mixed ? 3 : 0, tall = row - 2 - strip;
      if (row >= 12 || i % 2 === 0) {
        draw.fillStyle = ink;
        draw.textAlign = "right";
        draw.fillText(i, LABEL - 9, y + row / 2);
      }
      if (!layer.units) return;
      const plain = layer.kind === "dense" && !(this.mode === "profile" && layer.profile);
      const columns = plain ? 1 : Math.ceil(layer.units / layer.column);
      for (let k = 0; k < columns; ++k) {
        const from = LABEL + Math.round((k * layer.column * span) / layer.units);
        const to = plain ? LABEL + span : LABEL + Math.round((Math.min((k + 1) * layer.column, layer.units) * span) / layer.units);
        const w = Math.max(1, to - from - (to - from > 4 ? 1 : 0));
        const frequency = this.#frequency(i, k);
        const counted = layer.kind !== "dense" && this.#place(layer, k) !== "gpu";
        draw.fillStyle = frequency === null ? faint : counted || this.mode === "profile" ? heatColor(frequency, dark) : FLAT[dark];
        draw.fillRect(from, y, w, tall);
        if (strip && layer.kind === "experts") {
          draw.fillStyle = places[this.#place(layer, k)];
          draw.fillRect(from, y + tall, w, strip - 1);
        }
      }
      if (strip && layer.kind !== "experts") {
        const edge = Math.round((layer.on_device / layer.units) * span);
        draw.fillStyle = places.gpu;
        draw.fillRect(LABEL, y + tall, edge, strip - 1);
        draw.fillStyle = places.memory;
        draw.fillRect(LABEL + edge, y + tall, span - edge, strip - 1);
      }
      const computed = this.#share(i, this.mode !== "now");
      const x = LABEL + span + 12, room = share - 12 - 36;
      draw.fillStyle = faint;
      draw.fillRect(x, y + row / 2 - 3, room, 4);
      if (computed !== null) {
        draw.fillStyle = BAR[dark];
        draw.fillRect(x, y + row / 2 - 3, Math.max(1, room * Math.min(1, computed)), 4);
        if (row >= 12) {
          draw.fillStyle = ink;
          draw.textAlign = "right";
          draw.fillText(percent(computed), width, y + row / 2);
        }
      }
    });
  }

  #place(layer, k) {
    if (k * layer.column < layer.on_device) return "gpu";
    const half = Math.min(layer.column, layer.units - k * layer.column) / 2;
    if (layer.resident && layer.resident[k] >= half) return "gpu";
    return layer.in_memory && layer.in_memory[k] < half ? "file" : "memory";
  }

  #point(event) {
    const { row, span } = this.shape ?? {}, layers = this.told?.layers;
    if (!row || !layers) return;
    const x = event.offsetX - LABEL, i = Math.floor(event.offsetY / row), layer = layers[i];
    if (!layer?.units || x < 0 || x >= span) { this.tip.hidden = true; return; }
    const k = Math.floor(((x / span) * layer.units) / layer.column), start = k * layer.column;
    const end = Math.min(start + layer.column, layer.units) - 1, name = layer.kind === "experts" ? "expert" : "neuron";
    const frequency = this.#frequency(i, k), parts = [];
    if (frequency !== null) parts.push(this.mode !== "profile" && this.#place(layer, k) === "gpu" ? "not counted" : layer.kind === "dense" && this.mode !== "profile" ? "always computed" : `${name === "expert" ? "selected" : "fire"} for ${percent(frequency)} of tokens`);
    if (this.mode !== "profile" && layer.profile && layer.kind !== "dense") parts.push(`in the file ${percent(layer.profile[k])}`);
    parts.push({ gpu: "on the GPU", memory: "in memory", file: "in the file" }[this.#place(layer, k)]);
    this.tip.replaceChildren(make("b", { textContent: `Layer ${i}, ${name}${start === end ? ` ${start}` : `s ${start}–${end}`}` }), parts.join(" · "));
    this.tip.hidden = false;
    const width = this.map.clientWidth, at = Math.min(Math.max(event.offsetX - this.tip.offsetWidth / 2, 0), width - this.tip.offsetWidth);
    this.tip.style.left = `${at}px`;
    this.tip.style.top = `${(i + 1) * row + 6}px`;
  }
}

// Colours: light, dark.
const RAMPS = [
  [[0, [240, 234, 226]], [0.25, [253, 205, 150]], [0.55, [240, 120, 40]], [0.8, [185, 50, 10]], [1, [105, 20, 5]]],
  [[0, [34, 29, 26]], [0.25, [95, 38, 18]], [0.55, [214, 84, 22]], [0.8, [251, 160, 70]], [1, [255, 240, 205]]],
];
const INK = ["#6a6057", "#a89d92"], FAINT = ["#efe9e1", "#241f1b"], FLAT = ["#e0cdb9", "#4a382b"], BAR = ["#b93c0a", "#fb923c"];
const PLACES = { gpu: ["#6d4fd8", "#a48bff"], memory: ["#2c8c80", "#4fc0b1"], file: ["#b3a89c", "#5d544c"] };

function matches(style) {
  const scheme = style.colorScheme;
  return Number(scheme === "dark" || (scheme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches));
}

function heatColor(frequency, dark) {
  const at = Math.min(1, Math.max(0, frequency)) ** SHADE, ramp = RAMPS[dark];
  const next = Math.max(1, ramp.findIndex(([stop]) => stop >= at)), [from, a] = ramp[next - 1], [to, b] = ramp[next];
  const part = (at - from) / (to - from);
  return `rgb(${a.map((x, i) => Math.round(x + (b[i] - x) * part)).join(" ")})`;
}
