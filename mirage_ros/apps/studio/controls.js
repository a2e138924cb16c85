// Runs in the page. The picture lies behind the view; the wheel, a gamepad and, on a touch screen, four buttons press the keys that walk; dropped files go
// to the upload buttons; on a phone the view takes what the panel leaves. viser has no call for these.
if (!window.mirageStudio) {
  const picture = document.createElement("div");
  picture.id = "mirage-picture";
  picture.style = "position:absolute;inset:0;pointer-events:none";
  let asked = 0, shown = 0;
  window.mirageStudio = {
    // The one that was asked for last stays; one that is decoded before it is shown, too.
    show(url) {
      const number = ++asked, next = new Image();
      next.style = "position:absolute;width:100%;height:100%;object-fit:contain";
      next.decoding = "sync";
      next.alt = "What the camera sees";
      next.src = url;
      next.decode().then(() => {
        if (number < shown) return;
        shown = number;
        const view = document.querySelector("canvas")?.parentElement;
        if (view && picture.parentElement !== view) view.prepend(picture);
        picture.replaceChildren(next);
      });
      // viser's own picture, a shader over the whole view, is never used and costs much without a GPU.
      const unused = window.__viserMutable?.backgroundMaterial;
      if (unused) unused.visible = false;
    },
    hide() { shown = ++asked; picture.replaceChildren(); },
  };
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
  const isDepth = async (file) => {  // a PNG of one channel of 16 bits, as its head tells
    const head = new Uint8Array(await file.slice(0, 26).arrayBuffer());
    return head[1] === 0x50 && head[2] === 0x4e && head[24] === 16 && head[25] === 0;
  };
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    const files = [...event.dataTransfer.files].slice(0, 2), inputs = document.querySelectorAll("input[type=file]");
    const depths = await Promise.all(files.map(isDepth));
    for (const wanted of [0, 1]) {  // the photograph first
      const file = files.find((_, at) => depths[at] === Boolean(wanted)), list = new DataTransfer();
      if (!file || !inputs[wanted]) continue;
      list.items.add(file);
      inputs[wanted].files = list.files;
      inputs[wanted].dispatchEvent(new Event("change", {bubbles: true}));
    }
  });
  const pad = document.createElement("div");
  if (matchMedia("(pointer: coarse)").matches) {
    pad.id = "mirage-walk";
    pad.style = "position:fixed;left:10px;bottom:10px;z-index:9;display:grid;grid-template-columns:repeat(3,46px);gap:4px";
    const keys = [["", ""], ["\u25b2", "KeyW", "ahead"], ["", ""], ["\u25c0", "KeyA", "left"], ["\u25bc", "KeyS", "back"],
      ["\u25b6", "KeyD", "right"]];
    for (const [sign, code, where] of keys) {
      const key = document.createElement(code ? "button" : "span");
      if (code) {
        key.textContent = sign;
        key.setAttribute("aria-label", `Walk ${where}`);
        key.style = "height:46px;border:0;border-radius:8px;font-size:18px;color:#fff;background:#0006;touch-action:none";
        key.addEventListener("contextmenu", (event) => event.preventDefault());
        key.addEventListener("pointerdown", () => press(code, true));
        for (const end of ["pointerup", "pointercancel", "pointerleave"]) key.addEventListener(end, () => press(code, false));
      }
      pad.append(key);
    }
    document.body.append(pad);
  }
  const panelStyle = "div[style*='position: fixed'][style*='bottom: 0']", narrow = "36em";
  const style = document.createElement("style");
  style.textContent = `@media (max-width: ${narrow}) { ${panelStyle}, ${panelStyle} div[style*="width: 20em"] ` +
    "{ width: 100% !important; } [class*=Notifications-root] { left: auto !important; right: 1em; max-width: 13em; } }";
  document.head.append(style);
  const arrange = () => {
    const panel = document.querySelector(panelStyle), canvas = document.querySelector("canvas");
    const view = canvas && [...document.querySelectorAll("div")].find(
      (one) => one.style.flexGrow === "1" && one.style.height === "100%" && one.contains(canvas) || one.dataset.mirageView);
    if (!view) return;
    view.dataset.mirageView = "yes";
    const sheet = panel && matchMedia(`(max-width: ${narrow})`).matches;
    pad.style.bottom = `${10 + (sheet ? panel.offsetHeight : 0)}px`;
    view.style.height = sheet ? `${innerHeight - panel.offsetHeight}px` : "100%";
    if (sheet && !panel.dataset.mirageWatched) {
      panel.dataset.mirageWatched = "yes";
      new ResizeObserver(arrange).observe(panel);
    }
  };
  window.addEventListener("resize", () => setTimeout(arrange, 100));
  arrange();
}
