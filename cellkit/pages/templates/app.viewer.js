// A picture with its cells on a canvas: zoom, pan, outlines; parts are asked for where the whole is shown reduced.

/** Cells as the server sends them: a JSON text, then arrays (cellkit/pages/app/views.py, cells_bytes). */
export function parseCells(buffer) {
  const long = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, long)));
  let at = 4 + long;
  for (const [name, kind, count] of head.arrays) {
    head[name] = kind === "f" ? new Float32Array(buffer, at, count) : new Uint32Array(buffer, at, count);
    at += 4 * count;
  }
  const { width, height, step } = head.view;
  head.columns = Math.ceil(width / step);
  head.rows = Math.ceil(height / step);
  head.labels = new Uint32Array(head.columns * head.rows);
  for (let k = 0; k < head.start.length; k++) head.labels.fill(head.cell[k], head.start[k], head.start[k] + head.length[k]);
  return head;
}

/** The colour of cell k (from 1), as [red, green, blue]. */
export function colourOf(cells, k, colours) {
  const own = cells.class[k - 1];
  if (own > 0) return rgb(colours[((own - 1) % (colours.length - 1)) + 1]);
  const hue = (k * 137.508) % 360; // by the golden angle neighbours differ
  const part = (n) => Math.round(255 * (0.62 - 0.38 * Math.max(-1, Math.min((n + hue / 30) % 12 - 3, 9 - ((n + hue / 30) % 12), 1))));
  return [part(0), part(8), part(4)];
}

const rgb = (hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));

export class Viewer {
  /** `need(view)` is called when a part is wanted as it is; `tell(text)` with what is under the pointer. */
  constructor(canvas, colours, need, tell) {
    Object.assign(this, { canvas, colours, need, tell, scale: 1, x: 0, y: 0, brightness: 1, outlines: true, fill: false });
    this.clear();
    new ResizeObserver(() => this.resized()).observe(canvas);
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.drag = [event.clientX, event.clientY];
    });
    canvas.addEventListener("pointermove", (event) => this.moved(event));
    for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => { this.drag = null; });
    canvas.addEventListener("pointerleave", () => this.tell(""));
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  clear() {
    Object.assign(this, { size: null, whole: null, part: null, cells: null, partCells: null, over: null, partOver: null });
    this.draw();
  }

  /** Show a picture of width x height px; `bitmap` is all of it, reduced by `view.step`. */
  show(width, height, bitmap, view) {
    this.clear();
    Object.assign(this, { size: { width, height }, whole: { bitmap, view } });
    this.fit();
  }

  setCells(cells) {
    Object.assign(this, { cells, partCells: null });
    this.paint();
    this.settle();
  }

  setPart(bitmap, view, cells) {
    Object.assign(this, { part: { bitmap, view }, partCells: cells });
    this.paint();
  }

  resized() {
    const ratio = window.devicePixelRatio || 1;
    const before = this.canvas.width;
    this.canvas.width = Math.max(1, Math.round(this.canvas.clientWidth * ratio));
    this.canvas.height = Math.max(1, Math.round(this.canvas.clientHeight * ratio));
    this.ratio = ratio;
    if (this.size && (this.fitted || !before)) this.fit(); else this.draw();
  }

  fit() {
    if (!this.size) return;
    const { clientWidth, clientHeight } = this.canvas;
    this.scale = Math.min(clientWidth / this.size.width, clientHeight / this.size.height);
    this.x = (clientWidth - this.scale * this.size.width) / 2;
    this.y = (clientHeight - this.scale * this.size.height) / 2;
    this.fitted = true;
    this.draw();
    this.settle();
  }

  zoom(times, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    if (!this.size) return;
    const least = 0.5 * Math.min(this.canvas.clientWidth / this.size.width, this.canvas.clientHeight / this.size.height, 1);
    const scale = Math.min(Math.max(this.scale * times, least), 40);
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.fitted = false;
    this.draw();
    this.settle();
  }

  pan(dx, dy) {
    if (!this.size) return;
    const { clientWidth, clientHeight } = this.canvas; // some of the picture stays in sight
    this.x = Math.min(Math.max(this.x + dx, 40 - this.scale * this.size.width), clientWidth - 40);
    this.y = Math.min(Math.max(this.y + dy, 40 - this.scale * this.size.height), clientHeight - 40);
    this.fitted = false;
    this.draw();
    this.settle();
  }

  key(event) {
    const step = 40;
    const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (moves[event.key]) this.pan(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoom(1.25);
    else if (event.key === "-") this.zoom(0.8);
    else if (event.key === "0") this.fit();
    else return;
    event.preventDefault();
  }

  moved(event) {
    if (this.drag) {
      this.pan(event.clientX - this.drag[0], event.clientY - this.drag[1]);
      this.drag = [event.clientX, event.clientY];
    } else if (this.size) {
      const column = Math.floor((event.offsetX - this.x) / this.scale), row = Math.floor((event.offsetY - this.y) / this.scale);
      const inside = column >= 0 && row >= 0 && column < this.size.width && row < this.size.height;
      this.tell(inside ? { column, row, cell: this.cellAt(column, row) } : "");
    }
  }

  cellAt(column, row) {
    for (const cells of [this.partCells, this.cells]) {
      if (!cells) continue;
      const { left, top, width, height, step } = cells.view;
      const x = column - left, y = row - top;
      if (x >= 0 && y >= 0 && x < width && y < height) return cells.labels[Math.floor(y / step) * cells.columns + Math.floor(x / step)];
    }
    return 0;
  }

  /** Ask for the part in sight, when nothing has moved for a moment and it would show more than the whole does. */
  settle() {
    clearTimeout(this.timer);
    if (!this.whole || this.whole.view.step === 1 || this.scale * this.whole.view.step < 1.3) return;
    this.timer = setTimeout(() => {
      const { clientWidth, clientHeight } = this.canvas;
      const left = Math.max(0, Math.floor(-this.x / this.scale)), top = Math.max(0, Math.floor(-this.y / this.scale));
      const width = Math.min(Math.ceil(clientWidth / this.scale) + 1, this.size.width - left);
      const height = Math.min(Math.ceil(clientHeight / this.scale) + 1, this.size.height - top);
      if (width > 0 && height > 0) this.need({ left, top, width, height });
    }, 250);
  }

  /** Make the layers of the cells anew. */
  paint() {
    this.over = this.cells && this.layer(this.cells);
    this.partOver = this.partCells && this.layer(this.partCells);
    this.draw();
  }

  layer(cells) {
    const { columns, rows, labels } = cells;
    const canvas = new OffscreenCanvas(columns, rows), context = canvas.getContext("2d");
    const image = context.createImageData(columns, rows), pixels = new Uint32Array(image.data.buffer);
    const bright = new Uint32Array(cells.class.length + 1), pale = new Uint32Array(cells.class.length + 1);
    for (let k = 1; k <= cells.class.length; k++) {
      const [red, green, blue] = colourOf(cells, k, this.colours);
      bright[k] = (255 << 24) | (blue << 16) | (green << 8) | red;
      pale[k] = (105 << 24) | (blue << 16) | (green << 8) | red;
    }
    const wide = Math.max(1, Math.round(Math.max(columns, rows) / 900));
    for (let row = 0, at = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++, at++) {
        const own = labels[at];
        if (!own) continue;
        const edge = this.outlines && (
          column < wide || labels[at - wide] !== own || column + wide >= columns || labels[at + wide] !== own ||
          row < wide || labels[at - wide * columns] !== own || row + wide >= rows || labels[at + wide * columns] !== own);
        if (edge) pixels[at] = bright[own]; else if (this.fill) pixels[at] = pale[own];
      }
    }
    context.putImageData(image, 0, 0);
    return canvas;
  }

  draw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.drawNow(); });
  }

  drawNow() {
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.size) return;
    const ratio = this.ratio || 1;
    context.setTransform(ratio * this.scale, 0, 0, ratio * this.scale, ratio * this.x, ratio * this.y);
    context.imageSmoothingEnabled = this.scale < 2;
    const put = (what, view) => context.drawImage(what, view.left, view.top, view.width, view.height);
    const lit = ({ bitmap, view }) => { // times the brightness: drawn on black, then added as often as it takes
      context.fillRect(view.left, view.top, view.width, view.height);
      for (let rest = this.brightness; rest > 0.001; rest -= 1) {
        context.globalAlpha = Math.min(1, rest);
        put(bitmap, view);
        context.globalCompositeOperation = "lighter";
      }
      context.globalAlpha = 1;
      context.globalCompositeOperation = "source-over";
    };
    lit(this.whole);
    if (this.part) lit(this.part);
    if (this.over) {
      context.save();
      if (this.partOver) { // not where the part shows its own
        const { left, top, width, height } = this.partCells.view;
        context.beginPath();
        context.rect(0, 0, this.size.width, this.size.height);
        context.rect(left, top, width, height);
        context.clip("evenodd");
      }
      put(this.over, this.cells.view);
      context.restore();
    }
    if (this.partOver) put(this.partOver, this.partCells.view);
  }
}
