// Copying the steering arguments, the arrow keys, and the way to the model if evaluation/serve.sh serves this page.
"use strict";

const button = document.querySelector("#copy");
const steering = document.querySelector("#steering");

async function copy() {
  try {
    await navigator.clipboard.writeText(steering.textContent);
    return true;
  } catch {
    // Pages from the disk may not be allowed to use the clipboard: copy what is selected instead.
    getSelection().selectAllChildren(steering);
    return document.execCommand("copy");
  }
}

button.addEventListener("click", async () => {
  button.textContent = (await copy()) ? "copied" : "select and copy it";
  setTimeout(() => (button.textContent = "copy"), 2000);
});

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  const relation = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  const link = relation && document.querySelector(`a[rel=${relation}]`);
  if (link) link.click();
});

// A page from the disk asks nobody.
if (location.protocol !== "file:") {
  fetch("../sae/info", { method: "HEAD" }).then((response) => (document.querySelector("#try").hidden = !response.ok));
}
