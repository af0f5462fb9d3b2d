// The slider over the two images. It keeps its position for the next images.
let position = 50;
const place = () => {
  for (const slider of element.querySelectorAll(".wipe-position")) {
    slider.value = position;
    slider.parentElement.style.setProperty("--position", `${position}%`);
  }
};
element.addEventListener("input", event => {
  if (!event.target.classList.contains("wipe-position")) return;
  position = event.target.value;
  place();
});
watch("value", place);
