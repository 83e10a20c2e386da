// Paints whole pixels of the canvas that the pointer touches; the canvas has the size of the picture.
// The handlers are delegated, so a new canvas needs no set-up.
(() => {
  let last = null;
  const canvasOf = event => event.target.closest && event.target.closest('canvas.cdrl-mask');
  const brush = () => {
    const input = document.querySelector('#cdrl-brush input[type=range]');
    return input ? Number(input.value) : 3;
  };
  const place = (canvas, event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * canvas.width / box.width,
            (event.clientY - box.top) * canvas.height / box.height];
  };
  const paint = (canvas, from, to) => {
    const context = canvas.getContext('2d'), size = brush();
    context.fillStyle = 'rgb(230, 90, 30)';
    const steps = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1])));
    for (let k = 0; k <= steps; k++) {
      const x = from[0] + (to[0] - from[0]) * k / steps;
      const y = from[1] + (to[1] - from[1]) * k / steps;
      context.fillRect(Math.round(x - size / 2), Math.round(y - size / 2), size, size);
    }
  };
  document.addEventListener('pointerdown', event => {
    const canvas = canvasOf(event);
    if (!canvas) return;
    event.preventDefault();
    last = place(canvas, event);
    paint(canvas, last, last);
  });
  document.addEventListener('pointermove', event => {
    const canvas = canvasOf(event);
    if (!canvas || last === null) return;
    const here = place(canvas, event);
    paint(canvas, last, here);
    last = here;
  });
  for (const end of ['pointerup', 'pointercancel'])
    document.addEventListener(end, () => { last = null; });
  window.cdrlShow = id => document.getElementById(id).scrollIntoView({block: 'nearest'});
  window.cdrlClear = () => document.querySelectorAll('canvas.cdrl-mask').forEach(
    canvas => canvas.getContext('2d').clearRect(0, 0, canvas.width, canvas.height));
  window.cdrlMask = () => {
    const canvas = document.querySelector('canvas.cdrl-mask');
    if (!canvas) return '';
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    let bits = '';
    for (let k = 3; k < data.length; k += 4) bits += data[k] > 127 ? '1' : '0';
    return bits;
  };
})();
