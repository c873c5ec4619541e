// Draws strokes of mouse, pen or finger on the canvas and triggers "drawn" after each change.
// props: the colours `ink` and `paper`, and the width of `pen` as a fraction of the canvas.
const canvas = element.querySelector("canvas");
const pen = canvas.getContext("2d");
const strokes = [];

const paint = () => {
  pen.fillStyle = props.paper;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.strokeStyle = props.ink;
  pen.lineWidth = canvas.width * props.pen;
  pen.lineCap = pen.lineJoin = "round";
  for (const points of strokes) {
    pen.beginPath();
    pen.moveTo(...points[0]);
    // A click gives a line of no length, drawn as its round caps.
    points.forEach((point) => pen.lineTo(...point));
    pen.stroke();
  }
};

const place = (event) => {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
};

const notify = () => {
  paint();
  element.querySelectorAll("button").forEach((button) => (button.disabled = !strokes.length));
  trigger("drawn", { picture: strokes.length ? canvas.toDataURL("image/png") : "" });
};

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  strokes.push([place(event)]);
  paint();
});

canvas.addEventListener("pointermove", (event) => {
  if (!canvas.hasPointerCapture(event.pointerId)) return;
  strokes.at(-1).push(...event.getCoalescedEvents().map(place), place(event));
  paint();
});

canvas.addEventListener("lostpointercapture", notify);

element.querySelector(".undo").addEventListener("click", () => {
  strokes.pop();
  notify();
});

element.querySelector(".clear").addEventListener("click", () => {
  strokes.length = 0;
  notify();
});

paint();
