// The file of a plan is read here, in the browser: the server is sent its text, and takes no files.
const MOST = 1000000;
const field = () => element.querySelector("input");
const remove = () => element.querySelector("button");
let chosen = "";
const show = () => {
  if (!props.value) chosen = "";
  remove().textContent = `Remove ${chosen}`;
  remove().hidden = !chosen;
};
element.addEventListener("change", async event => {
  const [file] = event.target.files;
  if (!file) return;
  const text = file.size > MOST ? "too large" : await file.text();
  chosen = file.name;
  props.value = text;
  show();
});
element.addEventListener("click", event => {
  if (!event.target.closest("button")) return;
  chosen = field().value = props.value = "";
  show();
  field().focus();
});
watch("value", show);
