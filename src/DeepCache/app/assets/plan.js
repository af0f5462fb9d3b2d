// Reads the file of a plan in the browser: the server receives its text only, and accepts no files.
const MOST = 1000001;  // bytes: one more than the limit, so that a larger file is refused
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
  const text = await file.slice(0, MOST).text();
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
