"use strict";
/* The five-layer student in plain JavaScript: what PyTorch computes, in the same order.

A block is convolution, max pooling 2x2 (or none), normalisation (a factor and a shift a filter), ReLU; the last maps are averaged and read
by one linear layer. Maps lie as in PyTorch, filter by filter, row by row. Sums are float64, what passes between layers float32. */
const Student = {
  bytes: (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)),

  /* A student as kdnb.playing exports it, with views on its weights in place of the text that holds them. */
  unpack(packed) {
    const weights = new Float32Array(Student.bytes(packed.weights).buffer);
    let at = 0;
    const take = (count) => weights.subarray(at, (at += count));
    const layers = packed.layers.map((layer) => ({
      ...layer,
      kernels: take(layer.after * layer.before * layer.kernel ** 2),
      factor: take(layer.after),
      shift: take(layer.after),
    }));
    const filters = layers[layers.length - 1].after;
    return { layers, filters, linear: take(packed.classes * filters), bias: take(packed.classes) };
  },

  /* Zero mean and unit standard deviation over all pixels and channels of an image. */
  standardised(pixels) {
    const mean = pixels.reduce((sum, value) => sum + value, 0) / pixels.length;
    const variance = pixels.reduce((sum, value) => sum + (value - mean) ** 2, 0) / pixels.length;
    return pixels.map((value) => (value - mean) / (Math.sqrt(variance) + 1e-3));
  },

  /* One output filter of a convolution with zeros around the image: size x size sums. */
  convolved(maps, size, { before, kernel, kernels }, filter) {
    const sums = new Float64Array(size * size);
    const reach = (kernel - 1) / 2;
    for (let channel = 0; channel < before; channel++) {
      for (let row = -reach; row <= reach; row++) {
        for (let column = -reach; column <= reach; column++) {
          const weight = kernels[((filter * before + channel) * kernel + row + reach) * kernel + column + reach];
          const left = Math.max(0, -column);
          const right = size - Math.max(0, column);
          for (let y = Math.max(0, -row); y < size - Math.max(0, row); y++) {
            const from = (channel * size + y + row) * size + column;
            for (let x = left; x < right; x++) sums[y * size + x] += weight * maps[from + x];
          }
        }
      }
    }
    return sums;
  },

  pooled(values, size) {
    const half = Math.floor(size / 2);
    const found = new Float64Array(half * half);
    for (let y = 0; y < half; y++) {
      for (let x = 0; x < half; x++) {
        const at = 2 * y * size + 2 * x;
        found[y * half + x] = Math.max(values[at], values[at + 1], values[at + size], values[at + size + 1]);
      }
    }
    return found;
  },

  block(maps, size, layer) {
    const after = layer.pool ? Math.floor(size / 2) : size;
    const found = new Float32Array(layer.after * after * after);
    for (let filter = 0; filter < layer.after; filter++) {
      const sums = Student.convolved(maps, size, layer, filter);
      const kept = layer.pool ? Student.pooled(sums, size) : sums;
      const { factor, shift } = layer;
      found.set(kept.map((value) => Math.max(0, value * factor[filter] + shift[filter])), filter * after * after);
    }
    return { maps: found, size: after };
  },

  /* The sum over filters of weight x map, place by place. */
  mixed(maps, places, weights) {
    const sums = new Float64Array(places);
    weights.forEach((weight, filter) => {
      for (let place = 0; place < places; place++) sums[place] += weight * maps[filter * places + place];
    });
    return sums;
  },

  /* One image, 3 x size x size values from 0 to 1: logits, the average map of each layer, and for each class its evidence map. */
  answer(network, pixels, size) {
    let now = { maps: Student.standardised(pixels), size };
    const maps = network.layers.map((layer) => {
      now = Student.block(now.maps, now.size, layer);
      return { size: now.size, values: Student.mixed(now.maps, now.size ** 2, new Array(layer.after).fill(1 / layer.after)) };
    });
    const evidence = Array.from(network.bias, (_, label) => {
      const weights = network.linear.subarray(label * network.filters, (label + 1) * network.filters);
      return Student.mixed(now.maps, now.size ** 2, weights);
    });
    const logits = evidence.map((map, label) => network.bias[label] + map.reduce((sum, value) => sum + value, 0) / map.length);
    return { logits, maps, evidence, bias: Array.from(network.bias) };
  },

  softmax(logits, temperature = 1) {
    const powers = logits.map((logit) => Math.exp((logit - Math.max(...logits)) / temperature));
    const sum = powers.reduce((total, power) => total + power, 0);
    return powers.map((power) => power / sum);
  },

  /* A stored image, grey or in colours, as the network takes it. */
  pixels(stored, size) {
    const values = Student.bytes(stored);
    return Float32Array.from({ length: 3 * size * size }, (_, at) => values[at % values.length] / 255);
  },

  /* What every student of the page answers to every stored image: compared with PyTorch while the page is built and by its tests. */
  answers({ students, images, size }) {
    return students.map((packed) => {
      const network = Student.unpack(packed);
      return images.map((image) => {
        const { logits, maps, evidence } = Student.answer(network, Student.pixels(image.pixels, size), size);
        return { logits, maps: maps.map((map) => Array.from(map.values)), evidence: evidence.map((map) => Array.from(map)) };
      });
    });
  },

  /* The largest difference between the logits computed here and PyTorch's, which the page holds. */
  difference(data) {
    const answers = Student.answers(data);
    const apart = data.students.map((packed, one) =>
      packed.logits.map((logits, image) => logits.map((logit, label) => Math.abs(logit - answers[one][image].logits[label]))),
    );
    return Math.max(...apart.flat(2));
  },
};
