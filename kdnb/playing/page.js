"use strict";
/* What the reader asks, what the student answers, and how both are shown. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const networks = data.students.map(Student.unpack);
  const { size, classes, drawing } = data;
  const find = (id) => document.getElementById(id);
  const text = (value, digits) => value.toFixed(digits).replace("-", "−");
  const percent = (part) => `${(100 * part).toFixed(1)}%`;
  const state = { student: 0, pixels: null, about: "", teacher: null, truth: null, head: 0, grain: 1 };

  function element(name, properties = {}, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  const figure = (canvas, words) => element("figure", {}, canvas, element("figcaption", { textContent: words }));
  const name = (scope, words) => element("th", { scope, textContent: words });
  const head = (id, titles) => find(id).tHead.replaceChildren(element("tr", {}, ...titles.map((title) => name("col", title))));
  const row = (label, best, cells) =>
    element("tr", { className: label === best ? "first" : "" }, name("row", classes[label]), ...cells);

  /* Paint size x size cells; `colour` gives red, green and blue of a cell. */
  function paint(canvas, side, colour, label) {
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    const picture = context.createImageData(side, side);
    for (let at = 0; at < side * side; at++) picture.data.set([...colour(at), 255], 4 * at);
    context.putImageData(picture, 0, 0);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
    return canvas;
  }

  const paintImage = (canvas, pixels, label) =>
    paint(canvas, size, (at) => [0, 1, 2].map((colour) => Math.round(255 * pixels[colour * size * size + at])), label);

  const rgb = (code) => [1, 3, 5].map((at) => parseInt(code.slice(at, at + 2), 16));
  const tables = Object.fromEntries(Object.entries(data.colours).map(([name, colours]) => [name, colours.map(rgb)]));
  const shade = (table, part) => table[Math.round(Math.min(Math.max(part, 0), 1) * (table.length - 1))];

  /* Where a map's largest value lies, in words. */
  function where(values, side) {
    const at = values.indexOf(Math.max(...values));
    const third = (index) => Math.min(2, Math.floor((3 * (index + 0.5)) / side));
    const [down, right] = [third(Math.floor(at / side)), third(at % side)];
    const place = [["upper", "", "lower"][down], ["left", "", "right"][right]].filter(Boolean).join(" ");
    return place || "centre";
  }

  /* -- the answer -- */

  function probabilities(logits) {
    const temperature = Number(find("temperature").value);
    const own = Student.softmax(logits);
    const from = state.teacher || logits;
    const columns = [
      ["", `${data.students[state.student].title}`, own],
      ["soft", `${state.teacher ? "Teacher" : "The same"} at T = ${temperature}`, Student.softmax(from, temperature)],
      ...(state.truth ? [["truth", "Truth", state.truth]] : []),
    ];
    head("probabilities", ["Class", ...columns.map(([, title]) => title)]);
    const best = own.indexOf(Math.max(...own));
    const rows = classes.map((_, label) => {
      const cells = columns.map(([kind, , values]) => {
        const bar = element("span", { className: "bar" });
        bar.style.width = `${100 * values[label]}%`;
        bar.setAttribute("aria-hidden", "true");
        return element("td", { className: kind }, percent(values[label]), bar);
      });
      return row(label, best, cells);
    });
    find("probabilities").tBodies[0].replaceChildren(...rows);
    find("softened").textContent = state.teacher
      ? `softmax(logits / T) of the teacher, which this page has stored: its student learned from it at T = ${data.temperature}.`
      : "The teacher is not in this page and has not seen this image, so T softens the student's own logits.";
    const likeliest = (parts) => `${classes[parts.indexOf(Math.max(...parts))]}, ${percent(Math.max(...parts))}.`;
    const truth = state.truth ? ` Truth: ${likeliest(state.truth)}` : "";
    find("said").textContent = `${data.students[state.student].title}: ${likeliest(own)}${truth}`;
  }

  function maps(answer) {
    const fields = data.students[state.student].fields;
    find("maps").replaceChildren(
      ...answer.maps.map(({ size: side, values }, layer) => {
        const [low, high] = [Math.min(...values), Math.max(...values)];
        const label = `Average map of layer ${layer + 1}, ${side} by ${side} cells, strongest at the ${where(values, side)}`;
        const colour = (at) => shade(tables.map, (values[at] - low) / (high - low || 1));
        const sees = `each sees ${Math.min(fields[layer], size)} px`;
        const words = `Layer ${layer + 1}: ${side} × ${side} cells, ${sees}; ${text(low, 2)} to ${text(high, 2)}`;
        return figure(paint(element("canvas"), side, colour, label), words);
      }),
    );
  }

  function evidence(answer) {
    const side = answer.maps[answer.maps.length - 1].size;
    const most = Math.max(...answer.evidence.flatMap((map) => Array.from(map, Math.abs))) || 1;
    find("evidence").replaceChildren(
      ...answer.evidence.map((map, label) => {
        const words = `Evidence for ${classes[label]}, ${side} by ${side} cells, most for it at the ${where(map, side)}`;
        const canvas = paint(element("canvas"), side, (at) => shade(tables.evidence, 0.5 + map[at] / most / 2), words);
        return figure(canvas, `${classes[label]}: ${text(Math.min(...map), 1)} to ${text(Math.max(...map), 1)}`);
      }),
    );
    head("sum", ["Class", "bias", "+ for", "+ against", "= sum", "logit"]);
    const best = answer.logits.indexOf(Math.max(...answer.logits));
    find("sum").tBodies[0].replaceChildren(
      ...answer.evidence.map((map, label) => {
        const total = (part) => map.reduce((sum, value) => sum + part(value), 0) / map.length;
        const [speaksFor, against] = [total((value) => Math.max(value, 0)), total((value) => Math.min(value, 0))];
        const numbers = [answer.bias[label], speaksFor, against, answer.bias[label] + speaksFor + against, answer.logits[label]];
        return row(label, best, numbers.map((value) => element("td", { textContent: text(value, 3) })));
      }),
    );
  }

  function show() {
    const answer = Student.answer(networks[state.student], state.pixels, size);
    paintImage(find("image"), state.pixels, state.about);
    find("about").textContent = state.about;
    probabilities(answer.logits);
    maps(answer);
    evidence(answer);
  }

  function ask(pixels, about, teacher = null, truth = null) {
    Object.assign(state, { pixels, about, teacher, truth });
    find("fault").textContent = "";
    show();
  }

  /* -- three ways to ask -- */

  function askStored(image, words) {
    ask(Student.pixels(image.pixels, size), `${words}.`, image.teacher, image.truth);
  }

  function shelves() {
    classes.forEach((title, label) => {
      const thumbs = data.images.flatMap((image, at) => {
        if (image.label !== label) return [];
        const words = `Test image ${at + 1}, published as ${title}`;
        const input = element("input", { type: "radio", name: "stored", value: at, ariaLabel: words });
        input.addEventListener("click", () => askStored(image, words)); // arrow keys click, too
        const canvas = paintImage(element("canvas"), Student.pixels(image.pixels, size), words);
        canvas.setAttribute("aria-hidden", "true"); // its input says the same
        return [element("label", { className: "thumb" }, input, canvas)];
      });
      const shelf = [element("span", { textContent: title }), element("div", { className: "row" }, ...thumbs)];
      find("stored").append(element("div", { className: "shelf" }, ...shelf));
    });
  }

  function draw() {
    const [strength, way, noise] = ["strength", "way", "noise"].map((id) => Number(find(id).value));
    const outer = Number(document.querySelector("[name=outer]:checked").value);
    const [discs, scanner] = ["discs", "scanner"].map((id) => find(id).checked);
    const drawn = drawing.heads[state.head];
    const options = { size, contrast: drawing.contrast, strength, noise, seed: state.grain, discs, scanner };
    const grey = Phantom.draw(drawn, Phantom.lesion(drawn, way, outer), options);
    const chosen = document.querySelector("[name=stored]:checked");
    if (chosen) chosen.checked = false;
    const place = way === 0 ? "deep" : `${Math.round(100 * way)}% of the way to the ${outer === 1 ? "edge" : "base"}`;
    const pixels = Float32Array.from({ length: 3 * size * size }, (_, at) => grey[at % grey.length] / 255);
    const truth = Phantom.truth(strength, way, outer, scanner, drawing.scanner);
    ask(pixels, `Drawn: ring strength ${strength}, ${place}, noise ${noise}.`, null, truth);
  }

  async function read(file) {
    try {
      const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
      const { width, height } = bitmap;
      const context = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d");
      context.fillRect(0, 0, width, height); // black behind what is transparent
      context.drawImage(bitmap, 0, 0);
      const square = Reading.fitted(context.getImageData(0, 0, width, height).data, width, height, size);
      const chosen = document.querySelector("[name=stored]:checked");
      if (chosen) chosen.checked = false;
      const about = `Your image ${file.name}, ${width} × ${height} pixels, seen at ${size} × ${size}.`;
      ask(Float32Array.from(square, (value) => value / 255), about);
    } catch {
      find("fault").textContent = `${file.name} is not an image that this browser can read.`;
    }
  }

  function listen() {
    const say = (input) => (document.querySelector(`output[for=${input.id}]`).textContent = input.value);
    find("temperature").value = data.temperature;
    if (drawing) find("noise").value = drawing.noise;
    document.querySelectorAll("input[type=range]").forEach((input) => {
      say(input);
      input.addEventListener("input", () => say(input));
    });
    find("temperature").addEventListener("input", show);
    find("file").addEventListener("change", (event) => event.target.files[0] && read(event.target.files[0]));
    for (const kind of ["dragover", "dragleave", "drop"]) {
      document.addEventListener(kind, (event) => {
        event.preventDefault(); // the browser would leave the page for the file
        document.body.classList.toggle("dropping", kind === "dragover");
        if (kind === "drop" && event.dataTransfer.files[0]) read(event.dataTransfer.files[0]);
      });
    }
    if (drawing === null) return find("draw").remove();
    find("usual").textContent = drawing.noise;
    find("draw").addEventListener("input", draw);
    find("head").addEventListener("click", () => ((state.head = (state.head + 1) % drawing.heads.length), draw()));
    find("grain").addEventListener("click", () => ((state.grain += 1), draw()));
  }

  function check() {
    const difference = Student.difference(data);
    const many = `${data.images.length} test images, ${data.students.length} students`;
    const words = `largest difference between these logits and PyTorch's ${difference.toExponential(1)} (${many})`;
    const right = difference <= data.tolerance;
    find("checked").textContent = `${right ? "Checked in this browser" : "This browser computes wrongly"}: ${words}.`;
    if (!right) {
      find("checked").className = "warning";
      console.error(find("checked").textContent);
    }
  }

  find("run").textContent = data.run;
  data.students.forEach(({ title, fields }, at) => {
    const input = element("input", { type: "radio", name: "student", value: at, checked: at === 0 });
    input.addEventListener("change", () => ((state.student = at), show()));
    const sees = `${title} (last layer sees ${Math.min(fields[fields.length - 1], size)} of ${size} px)`;
    find("students").append(element("label", { className: "chip" }, input, sees));
  });
  shelves();
  listen();
  // First an image whose class shows: of a tumour, published as what it most likely is.
  const plain = data.images.findIndex(({ label, truth }) => label > 0 && (!truth || truth[label] > 0.9));
  document.querySelectorAll("[name=stored]")[Math.max(plain, 0)].click();
  check();
})();
