// Runs in the page. The wheel and a gamepad press the keys that walk, and a dropped file goes to the upload button:
// viser has no call for these.
if (!window.mirageStudio) {
  window.mirageStudio = true;
  const held = new Set(), send = (kind, code) =>
    document.dispatchEvent(new KeyboardEvent(kind, {code, bubbles: true}));
  const press = (code, down) => {
    if (down === held.has(code)) return;
    down ? held.add(code) : held.delete(code);
    send(down ? "keydown" : "keyup", code);
  };
  let timer = null;
  document.addEventListener("wheel", (event) => {
    if (!(event.target instanceof HTMLCanvasElement)) return;
    event.preventDefault(); event.stopPropagation();
    press("KeyW", event.deltaY < 0); press("KeyS", event.deltaY > 0);
    clearTimeout(timer);
    timer = setTimeout(() => { press("KeyW", false); press("KeyS", false); }, 90);
  }, {capture: true, passive: false});
  const sticks = [["KeyA", 0, -1], ["KeyD", 0, 1], ["KeyW", 1, -1], ["KeyS", 1, 1],
    ["ArrowLeft", 2, -1], ["ArrowRight", 2, 1], ["ArrowUp", 3, -1], ["ArrowDown", 3, 1]];
  const poll = () => {
    const pad = [...navigator.getGamepads()].find(Boolean);
    if (!pad) return;
    for (const [code, axis, sign] of sticks) press(code, (pad.axes[axis] || 0) * sign > 0.4);
    requestAnimationFrame(poll);
  };
  window.addEventListener("gamepadconnected", () => requestAnimationFrame(poll));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    const input = document.querySelector("input[type=file]");
    if (!input || !event.dataTransfer.files.length) return;
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change", {bubbles: true}));
  });
}
