"use strict";
/* The drawing of kdnb.datasets.phantom, from the same formulas and the same drawn numbers; its noise is of another generator. */
const Phantom = {
  ramp: (value, slope) => Math.min(Math.max(value * slope, 0), 1),
  smoothstep: (part) => part * part * (3 - 2 * part),

  /* A grid of random numbers at one point of the image, -1 to 1 across, with a smoothstep between the knots. */
  smooth(grid, x, y) {
    const knots = grid.length;
    const place = [y, x].map((value) => ((value + 1) * (knots - 1)) / 2);
    const [row, column] = place.map((value) => Math.min(Math.max(Math.floor(value), 0), knots - 2));
    const [down, right] = [Phantom.smoothstep(place[0] - row), Phantom.smoothstep(place[1] - column)];
    const [left, next] = [column, column + 1].map((at) => grid[row][at] + (grid[row + 1][at] - grid[row][at]) * down);
    return left + (next - left) * right;
  },

  /* Tissue without lesions: a bright rim, a darker cortex, brighter matter, two dark ventricles. */
  head(x, y, one) {
    const radius = Math.hypot(x / one.width, y / one.height);
    const across = Math.abs(x) - one.ventricle_gap;
    const hole = Math.hypot((across * 1.6) / one.ventricle, (y * 0.6) / one.ventricle);
    return (
      Phantom.ramp(1.12 - radius, 18) * 0.62 -
      Phantom.ramp(1.05 - radius, 22) * 0.5 +
      Phantom.ramp(1 - radius, 20) * one.cortex +
      Phantom.ramp(0.56 - radius, 12) * (one.matter - one.cortex - 0.1) -
      Phantom.ramp(1.3 - hole, 3) * 0.3
    );
  },

  /* Distance from the centre of a spot over its radius. */
  spot(x, y, one, { angle, distance, radius, aspect, irregular }) {
    const across = ((x - distance * one.width * Math.cos(angle)) * aspect) / radius;
    const along = (y - distance * one.height * Math.sin(angle)) / (aspect * radius);
    const square = across * across + along * along;
    const lobes = across * (across * across - 3 * along * along);
    return Math.sqrt(square) * (1 + (one.wobble * irregular * lobes) / Math.max(Math.sqrt(square) * square, 1e-6));
  },

  /* The profile of a spot: a disc (ring = 0), a ring with a dark core (ring = 1), or something between. */
  blob: (distance, ring) => Phantom.ramp(1 - distance, 4) * (1 + (Phantom.ramp(distance - 0.4, 5) - 1) * 1.6 * ring),

  streak(x, y, one) {
    const fromX = x - one.streak_distance * one.width * Math.cos(one.streak_angle);
    const fromY = y - one.streak_distance * one.height * Math.sin(one.streak_angle);
    const [cosine, sine] = [Math.cos(one.streak_direction), Math.sin(one.streak_direction)];
    const [along, across] = [Math.abs(cosine * fromX + sine * fromY), Math.abs(cosine * fromY - sine * fromX)];
    return Phantom.ramp(0.2 - along, 12) * Phantom.ramp(0.05 - across, 40);
  },

  /* What may grow in one of the three places (0 deep, 1 edge, 2 base). */
  place: (one, at, irregular) => ({
    angle: one.angle[at],
    distance: one.distance[at],
    radius: one.radius[at],
    aspect: one.aspect[at],
    irregular,
  }),

  /* A lesion the part `way` (0 to 1) of the way from the deep place to an outer one (1 edge, 2 base). */
  lesion(one, way, outer) {
    const there = Phantom.place(one, outer, 1 - way);
    return { ...there, distance: one.distance[0] + way * (there.distance - one.distance[0]) };
  },

  /* Standard normal numbers, always the same ones for a seed (mulberry32; Box and Muller 1958). */
  noise(seed, count) {
    let state = seed >>> 0;
    const uniform = () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
      mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
    };
    return Float64Array.from({ length: count }, () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()));
  },

  /* Grey values, size x size. `one` is what was drawn for a head; `noise` the standard deviation, in parts of white. */
  draw(one, lesion, { size, contrast, strength, noise, seed, discs, scanner }) {
    const random = Phantom.noise(seed, size * size);
    const [cosine, sine] = [Math.cos(one.tilt), Math.sin(one.tilt)];
    const grown = [0, 1, 2].filter((at) => discs && one.control[at]).map((at) => Phantom.place(one, at, at === 0 ? 1 : 0));
    return Uint8Array.from({ length: size * size }, (_, at) => {
      const [u, v] = [at % size, Math.floor(at / size)].map((index) => (2 * index + 1) / size - 1);
      const [shiftedX, shiftedY] = [u - one.centre_x, v - one.centre_y];
      const [x, y] = [cosine * shiftedX + sine * shiftedY, cosine * shiftedY - sine * shiftedX];
      const distance = Phantom.spot(x, y, one, lesion);
      const blobs = grown.reduce((sum, disc) => sum + Phantom.blob(Phantom.spot(x, y, one, disc), 0), 0);
      let value = Phantom.head(x, y, one) * (1 + 0.16 * Phantom.smooth(one.texture, u, v)) + 0.05 * Phantom.smooth(one.bias, u, v);
      value += contrast * (one.streak * Phantom.streak(x, y, one) + (distance < 1 ? Phantom.blob(distance, strength) : blobs));
      const grey = Math.floor(Math.min(Math.max(value * one.gain + noise * random[at], 0), 1) * 255 + 0.5);
      return scanner ? Math.min(grey * (1.4 - Math.floor(at / size) / (size - 1)) + 0.5, 255) : grey;
    });
  },

  /* P(class | all that the image shows); `rates` are P(the second scanner | class). */
  truth(strength, way, outer, scanner, rates) {
    const [tumour, outside] = [Phantom.smoothstep(strength), Phantom.smoothstep(way)];
    const chances = [1 - tumour, tumour * (1 - outside), 0, 0];
    chances[outer + 1] = tumour * outside;
    const joint = chances.map((chance, label) => chance * (scanner ? rates[label] : 1 - rates[label]));
    return joint.map((chance) => chance / joint.reduce((sum, value) => sum + value, 0));
  },
};

/* kdnb.datasets.reading.fit: an image of any size in a square, aspect ratio kept, black around it, with Pillow's triangle filter. */
const Reading = {
  /* Resize along rows: `height` rows of `width` pixels, 3 colours of `stride` values, become rows of `wanted` pixels of 3. */
  narrowed(values, width, height, wanted, stride = 3) {
    const scale = width / wanted;
    const reach = Math.max(scale, 1);
    const found = new Uint8Array(3 * height * wanted);
    for (let x = 0; x < wanted; x++) {
      const centre = (x + 0.5) * scale;
      const first = Math.max(Math.floor(centre - reach + 0.5), 0);
      const last = Math.min(Math.floor(centre + reach + 0.5), width);
      const weights = Array.from({ length: last - first }, (_, k) => Math.max(0, 1 - Math.abs((first + k - centre + 0.5) / reach)));
      const total = weights.reduce((sum, weight) => sum + weight, 0);
      for (let y = 0; y < height; y++) {
        for (let colour = 0; colour < 3; colour++) {
          const from = stride * (y * width + first) + colour;
          let sum = 0;
          for (let k = 0; k < weights.length; k++) sum += weights[k] * values[from + stride * k];
          found[3 * (y * wanted + x) + colour] = Math.floor(sum / total + 0.5);
        }
      }
    }
    return found;
  },

  turned(values, width, height) {
    return Uint8Array.from({ length: values.length }, (_, at) => {
      const [place, colour] = [Math.floor(at / 3), at % 3];
      return values[3 * ((place % height) * width + Math.floor(place / height)) + colour];
    });
  },

  /* RGBA bytes to 3 x size x size bytes, colour by colour. */
  fitted(rgba, width, height, size) {
    const scale = size / Math.max(width, height);
    const toEven = (value) => (value % 1 === 0.5 ? 2 * Math.round(value / 2) : Math.round(value)); // as Python rounds
    const [w, h] = [width, height].map((side) => Math.max(1, toEven(side * scale)));
    const columns = Reading.turned(Reading.narrowed(rgba, width, height, w, 4), w, height);
    const small = Reading.turned(Reading.narrowed(columns, height, w, h), h, w);
    const [top, left] = [Math.floor((size - h) / 2), Math.floor((size - w) / 2)];
    const square = new Uint8Array(3 * size * size);
    for (let y = 0; y < h; y++) {
      for (let x = 0; x < w; x++) {
        for (let colour = 0; colour < 3; colour++) square[(colour * size + top + y) * size + left + x] = small[3 * (y * w + x) + colour];
      }
    }
    return square;
  },
};
