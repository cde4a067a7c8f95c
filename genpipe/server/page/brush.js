// A brush over the picture to begin from: what is painted is drawn anew, and the rest stays as it is.

const STEP = 0.5; // of the brush's radius, that an arrow key moves it

export class Brush {
  // canvas: lies over the picture; radius: gives the brush's, as a share of the picture's shorter side; changed: is told
  // whether nothing is painted.
  constructor(canvas, radius, changed) {
    Object.assign(this, { canvas, radius, changed, strokes: [], at: null, open: false });
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { this.open = false; });
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => { this.at = null; this.#show(); });
    canvas.addEventListener("focus", () => this.#show());
  }

  // Begin anew, over a picture of this many pixels, maybe with strokes that were painted over it before.
  begin(width, height, strokes = []) {
    Object.assign(this.canvas, { width, height });
    this.strokes = [...strokes];
    this.#show();
  }

  get isEmpty() {
    return this.strokes.length === 0;
  }

  undo() {
    this.strokes.pop();
    this.#show();
  }

  clear() {
    this.strokes = [];
    this.#show();
  }

  // The strokes, and a picture of them: white where it was painted, black elsewhere, of the same size; null for none.
  async mask() {
    if (this.isEmpty) return null;
    const mask = Object.assign(document.createElement("canvas"), { width: this.canvas.width, height: this.canvas.height });
    const context = mask.getContext("2d");
    context.fillRect(0, 0, mask.width, mask.height);
    this.#paint(context, "#fff");
    const blob = await new Promise((resolve) => { mask.toBlob(resolve, "image/png"); });
    return { blob, strokes: [...this.strokes] };
  }

  #size() {
    return Math.max(1, this.radius() * Math.min(this.canvas.width, this.canvas.height));
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * this.canvas.width, ((event.clientY - box.top) / box.height) * this.canvas.height];
  }

  #down(event) {
    if (event.button) return;
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.open = true;
    this.at = null;
    this.strokes.push({ radius: this.#size(), points: [this.#place(event)] });
    this.#show();
  }

  #move(event) {
    if (!this.open) return;
    this.strokes.at(-1).points.push(this.#place(event));
    this.#show();
  }

  #key(event) {
    if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.undo();
      return;
    }
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], " ": [0, 0] };
    const way = ways[event.key];
    if (!way) return;
    event.preventDefault();
    const sides = [this.canvas.width, this.canvas.height];
    const from = this.at ?? sides.map((side) => side / 2);
    this.at = from.map((place, axis) => Math.min(sides[axis], Math.max(0, place + way[axis] * STEP * this.#size())));
    if (event.key === " " || event.shiftKey) this.strokes.push({ radius: this.#size(), points: [from, this.at] });
    this.#show();
  }

  #paint(context, colour) {
    Object.assign(context, { lineCap: "round", lineJoin: "round", strokeStyle: colour, fillStyle: colour });
    for (const { radius, points } of this.strokes) {
      context.lineWidth = 2 * radius;
      context.beginPath();
      for (const point of points) context.lineTo(...point);
      context.stroke();
      context.beginPath(); // a line of one point is none
      context.arc(...points[0], radius, 0, 2 * Math.PI);
      context.fill();
    }
  }

  #show() {
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.#paint(context, "#e0218a");
    if (document.activeElement === this.canvas && !this.open) this.#ring(context);
    this.changed(this.isEmpty);
  }

  // Where the brush is, for those who move it with keys.
  #ring(context) {
    const [x, y] = this.at ?? [this.canvas.width / 2, this.canvas.height / 2];
    const thin = Math.max(1, Math.min(this.canvas.width, this.canvas.height) / 100);
    for (const [colour, width] of [["#fff", 2 * thin], ["#000", thin]]) {
      Object.assign(context, { strokeStyle: colour, lineWidth: width });
      context.beginPath();
      context.arc(x, y, this.#size(), 0, 2 * Math.PI);
      context.stroke();
    }
  }
}
