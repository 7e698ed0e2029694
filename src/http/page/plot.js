// Plots of the last hours: lines over time, with a legend, a cursor for pointer and keyboard, and the same as a table.
// All text comes in by textContent: names are chosen by others.

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 8;
const HEIGHT = 180;
const EDGE = { left: 62, right: 10, top: 10, bottom: 24 };

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export function shape(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function setText(where, text) {
  if (where.textContent !== text) where.textContent = text;
}

// PostgreSQL's units: 1 kB is 1024 bytes.
export function size(bytes) {
  if (bytes === null || bytes === undefined || !Number.isFinite(bytes)) return "–";
  const sign = bytes < 0 ? "−" : "";
  let rest = Math.abs(bytes), unit = 0;
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  while (rest >= 1023.95 && unit < units.length - 1) { rest /= 1024; unit += 1; }
  const digits = unit === 0 || rest >= 100 ? 0 : 1;
  return `${sign}${rest.toFixed(digits)} ${units[unit]}`;
}

export function rate(bytes) {
  return bytes === null || bytes === undefined ? "–" : `${size(bytes)}/s`;
}

export function lasting(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds <= 0) return "0 s";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

export function clock(date, withSeconds = true) {
  const two = (number) => String(number).padStart(2, "0");
  const text = `${two(date.getHours())}:${two(date.getMinutes())}`;
  return withSeconds ? `${text}:${two(date.getSeconds())}` : text;
}

// The next number that people like: 1, 2 or 5 and zeros; for bytes and seconds in the units that these are shown in.
function ceiling(value, kind) {
  let unit = 1;
  if (kind === "bytes") while (value >= unit * 1024 && unit < 1024 ** 5) unit *= 1024;
  if (kind === "seconds") unit = [86400, 3600, 60].find((step) => value >= step * 2) ?? 1;
  const rest = value / unit;
  const power = 10 ** Math.floor(Math.log10(rest));
  const step = [1, 2, 5, 10].find((factor) => rest <= factor * power * 1.0001);
  return step * power * unit;
}

// One plot, which is a slider over time for whoever uses the keyboard or does not see it. `format` shows a value, `kind` is what it is measured in, `least` is the least that the axis reaches to.
export class Plot {
  constructor(parent, { id, title, note, kind, format, least }) {
    Object.assign(this, { id, kind, format, least, lines: [], at: null });
    this.svg = shape("svg", { class: "plot", role: "slider", tabindex: "0", "aria-labelledby": `${id}-title`,
      "aria-describedby": `${id}-text`, "aria-orientation": "horizontal", "aria-valuemin": "0" });
    this.legend = element("ul", { class: "legend" });
    this.more = element("p", { class: "quiet", id: `${id}-more` });
    // The slider's own text says the same.
    this.readout = element("p", { class: "quiet", "aria-hidden": "true" });
    this.summary = element("p", { class: "unseen", id: `${id}-text` });
    this.table = element("table");
    this.details = element("details", {}, element("summary", {}, "As a table"),
      element("div", { class: "scroll", role: "region", "aria-label": `${title}, as a table`, tabindex: "0" }, this.table));
    const caption = element("figcaption", { id: `${id}-title` }, title);
    this.figure = element("figure", { id }, caption, element("p", { class: "quiet" }, note), this.svg, this.legend,
      this.more, this.readout, this.summary, this.details);
    parent.append(this.figure);
    this.svg.addEventListener("pointermove", (event) => this.pointAt(event.clientX));
    this.svg.addEventListener("pointerdown", (event) => this.pointAt(event.clientX));
    this.svg.addEventListener("pointerleave", () => this.moveTo(null));
    this.svg.addEventListener("blur", () => this.moveTo(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    this.details.addEventListener("toggle", () => this.fillTable());
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  // `lines` are { name, values }, the newest value last, `seconds` apart, the last up to `end`, which may be behind `now`; `more` is
  // said of lines that are not shown.
  show({ lines, seconds, end, now, count, more }) {
    // What is read stays the same while time goes on: nobody is told again what they have heard.
    const at = this.at === null ? null : this.ends(this.at);
    Object.assign(this, { lines, seconds, end, now, count });
    if (at !== null) this.at = this.place(at);
    setText(this.more, more);
    this.draw();
    this.fillTable();
  }

  // When the time that a value is of is over.
  ends(index) {
    return this.end - (this.count - 1 - index) * this.seconds * 1000;
  }

  time(index) {
    return new Date(Math.min(this.ends(index), this.now));
  }

  place(ends) {
    const back = Math.round((this.end - ends) / 1000 / this.seconds);
    return Math.min(Math.max(this.count - 1 - back, 0), this.count - 1);
  }

  draw() {
    const width = Math.max(this.svg.clientWidth, 160);
    this.width = width;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const all = this.lines.flatMap((line) => line.values).filter((value) => value !== null);
    this.svg.replaceChildren();
    this.cursor = null;
    if (!all.length) {
      this.svg.append(shape("text", { class: "none", x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "nothing was measured yet"));
      this.legend.replaceChildren();
      setText(this.summary, "Nothing was measured yet.");
      this.tell(0, 0, "nothing was measured yet");
      return;
    }
    this.top = ceiling(Math.max(...all, this.least), this.kind);
    this.drawAxes();
    this.lines.forEach((line, index) => this.drawLine(line, index));
    this.drawLegend();
    setText(this.summary, this.words());
    this.cursor = shape("line", { class: "cursor", y1: EDGE.top, y2: HEIGHT - EDGE.bottom, visibility: "hidden" });
    this.svg.append(this.cursor);
    this.showCursor(false);
  }

  x(index) {
    const span = Math.max(this.count - 1, 1);
    return EDGE.left + (index / span) * (this.width - EDGE.left - EDGE.right);
  }

  y(value) {
    return HEIGHT - EDGE.bottom - (value / this.top) * (HEIGHT - EDGE.top - EDGE.bottom);
  }

  drawAxes() {
    for (const part of [0, 0.5, 1]) {
      const y = this.y(part * this.top);
      this.svg.append(shape("line", { class: part ? "rule" : "base", x1: EDGE.left, x2: this.width - EDGE.right, y1: y, y2: y }),
        shape("text", { x: EDGE.left - 8, y: y + 4, "text-anchor": "end" }, this.format(part * this.top).replace(".0 ", " ")));
    }
    const places = Math.max(2, Math.min(5, Math.floor((this.width - EDGE.left) / 110)));
    for (let place = 0; place < places; place += 1) {
      const index = (place / (places - 1)) * (this.count - 1);
      const anchor = place === 0 ? "start" : place === places - 1 ? "end" : "middle";
      this.svg.append(shape("text", { x: this.x(index), y: HEIGHT - 6, "text-anchor": anchor }, clock(this.time(index), false)));
    }
  }

  // What is not known is a gap; a value between two gaps is a point.
  drawLine(line, index) {
    const look = `c${index % COLOURS} d${Math.floor(index / COLOURS) % 4}`;
    let run = [];
    const flush = () => {
      if (!run.length) return;
      const only = run.length === 1 ? [[run[0][0] - 1, run[0][1]], [run[0][0] + 1, run[0][1]]] : run;
      const points = only.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
      if (this.lines.length <= 2) {
        const base = this.y(0).toFixed(1);
        this.svg.append(shape("polygon", { class: look,
          points: `${only[0][0].toFixed(1)},${base} ${points} ${only.at(-1)[0].toFixed(1)},${base}` }));
      }
      this.svg.append(shape("polyline", { class: look, points }));
      run = [];
    };
    line.values.forEach((value, place) => {
      if (value === null) flush();
      else run.push([this.x(place), this.y(value)]);
    });
    flush();
  }

  drawLegend() {
    const shown = this.at ?? this.count - 1;
    const entries = this.lines.map((line, index) => {
      const look = `c${index % COLOURS} d${Math.floor(index / COLOURS) % 4}`;
      const sample = shape("svg", { viewBox: "0 0 22 10", "aria-hidden": "true" }, shape("line", { class: look, x1: 1, x2: 21, y1: 5, y2: 5 }));
      return element("li", {}, sample, element("span", {}, line.name), element("b", {}, this.format(line.values[shown] ?? null)));
    });
    this.legend.replaceChildren(...entries);
  }

  // What somebody is told who does not see it.
  words() {
    const from = clock(this.time(0), false), to = clock(this.time(this.count - 1), false);
    const each = this.lines.slice(0, 12).map((line) => {
      const known = line.values.filter((value) => value !== null);
      if (!known.length) return `${line.name}: nothing was measured.`;
      const [least, most] = [Math.min(...known), Math.max(...known)].map((value) => this.format(value));
      return `${line.name}: ${this.format(known.at(-1))} at last, between ${least} and ${most}.`;
    });
    const more = this.more.textContent ? ` ${this.more.textContent}.` : "";
    return `From ${from} to ${to}. ${each.join(" ")}${more} The arrow keys read it value by value.`;
  }

  pointAt(clientX) {
    if (!this.cursor) return;
    const box = this.svg.getBoundingClientRect();
    const part = (clientX - box.left - EDGE.left) / (box.width - EDGE.left - EDGE.right);
    this.moveTo(Math.round(Math.min(Math.max(part, 0), 1) * (this.count - 1)));
  }

  key(event) {
    if (!this.cursor) return;
    const last = this.count - 1, here = this.at ?? last;
    const steps = { ArrowLeft: here - 1, ArrowRight: here + 1, PageUp: here - 30, PageDown: here + 30, Home: 0, End: last };
    if (event.key === "Escape") this.moveTo(null);
    if (!(event.key in steps)) return;
    event.preventDefault();
    this.moveTo(Math.min(Math.max(steps[event.key], 0), last));
  }

  moveTo(index) {
    this.at = index;
    if (!this.cursor) return;
    this.showCursor(true);
    this.drawLegend();
  }

  showCursor(moved) {
    const last = this.count - 1, index = this.at ?? last;
    const values = this.lines.map((line) => `${line.name} ${this.format(line.values[index] ?? null)}`).join(", ");
    const text = `${clock(this.time(index))}: ${values}`;
    this.cursor.setAttribute("visibility", this.at === null ? "hidden" : "visible");
    if (this.at !== null) {
      const x = this.x(index).toFixed(1);
      this.cursor.setAttribute("x1", x);
      this.cursor.setAttribute("x2", x);
    }
    setText(this.readout, this.at === null ? "" : text);
    // The newest value, which is another one all the time, is told when somebody comes here, and not over and over.
    const isNews = moved || this.at !== null || document.activeElement !== this.svg || !this.svg.hasAttribute("aria-valuetext");
    if (isNews) this.tell(index, last, text);
  }

  // What a screen reader is told where the slider is, when it is reached and whenever that changes.
  tell(now, max, text) {
    const told = { "aria-valuemax": String(max), "aria-valuenow": String(now), "aria-valuetext": text };
    for (const [name, value] of Object.entries(told)) {
      if (this.svg.getAttribute(name) !== value) this.svg.setAttribute(name, value);
    }
  }

  // A dozen of them, each the largest of what lies between; only while somebody looks.
  fillTable() {
    if (!this.details.open || !this.count) return;
    const rows = [], step = Math.max(1, Math.ceil(this.count / 12));
    for (let end = this.count; end > 0; end -= step) {
      const cells = this.lines.map((line) => {
        const part = line.values.slice(Math.max(0, end - step), end).filter((value) => value !== null);
        return element("td", { class: "num" }, part.length ? this.format(Math.max(...part)) : "–");
      });
      rows.push(element("tr", {}, element("th", { scope: "row" }, clock(this.time(end - 1))), ...cells));
    }
    const heads = this.lines.map((line) => element("th", { scope: "col", class: "num" }, line.name));
    this.table.replaceChildren(
      element("caption", { class: "unseen" }, "The most until each time, the newest first"),
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Until"), ...heads)),
      element("tbody", {}, ...rows));
  }
}
