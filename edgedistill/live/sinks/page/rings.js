// Keeps the last bins of a few rows in arrays that never grow. A bin that was skipped is not there.

export class Ring {
  constructor(rows, slots) {
    this.rows = rows;
    this.slots = slots;
    this.values = new Float32Array(rows * slots);
    this.bins = new Float64Array(slots).fill(-1);
    this.newest = -1;
  }

  put(bin, row) {
    const slot = bin % this.slots;
    for (let i = 0; i < this.rows; i++) {
      this.values[i * this.slots + slot] = row[i] ?? NaN; // null stands for what is no number
    }
    this.bins[slot] = bin;
    this.newest = Math.max(this.newest, bin);
  }

  has(bin) {
    return bin >= 0 && this.bins[bin % this.slots] === bin;
  }

  get(bin, i) {
    return this.has(bin) ? this.values[i * this.slots + (bin % this.slots)] : NaN;
  }
}

// Integrates a velocity and lets the position decay to the centre, because a decoded velocity has an offset that would
// carry the cursor away.
export class Cursor {
  constructor(binS, decayS, trail) {
    this.binS = binS;
    this.decayS = decayS;
    this.trail = trail;
    this.restart();
  }

  restart() {
    this.x = 0;
    this.y = 0;
    this.bin = -1;
    this.extent = 0;
    this.path = new Ring(2, this.trail);
  }

  move(bin, x, y, moving) {
    const passed = this.bin < 0 ? 1 : Math.max(1, bin - this.bin);
    const kept = Math.exp((-passed * this.binS) / this.decayS);
    this.bin = bin;
    if (moving) {
      this.x = this.x * kept + (Number.isFinite(x) ? x * this.binS : 0);
      this.y = this.y * kept + (Number.isFinite(y) ? y * this.binS : 0);
    } else {
      this.x = Number.isFinite(x) ? x : this.x;
      this.y = Number.isFinite(y) ? y : this.y;
    }
    this.extent = Math.max(this.extent * 0.9995, 1.25 * Math.abs(this.x), 1.25 * Math.abs(this.y));
    this.path.put(bin, [this.x, this.y]);
  }
}
