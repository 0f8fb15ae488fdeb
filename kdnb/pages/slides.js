// Arrow keys, space, a tap on the right or left half: on and back. Home, End: first and last. n: the speaker's notes.
const slides = [...document.querySelectorAll("section")];
let now = 0;

function show(number) {
  slides[now].classList.remove("now");
  now = Math.max(0, Math.min(slides.length - 1, number));
  slides[now].classList.add("now");
  document.getElementById("where").textContent = `${now + 1} / ${slides.length}`;
  history.replaceState(null, "", `#${now + 1}`);
}

const steps = { ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1 };
addEventListener("keydown", (event) => {
  if (event.key in steps) show(now + steps[event.key]);
  else if (event.key === "Home") show(0);
  else if (event.key === "End") show(slides.length - 1);
  else if (event.key === "n") document.body.classList.toggle("speaking");
  else return;
  event.preventDefault();
});
addEventListener("click", (event) => show(now + (event.clientX > innerWidth / 2 ? 1 : -1)));
addEventListener("hashchange", () => show(Number(location.hash.slice(1)) - 1 || 0));
show(Number(location.hash.slice(1)) - 1 || 0);
