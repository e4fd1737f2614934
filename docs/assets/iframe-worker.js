/* Search without a server: browsers start no worker from file://, so there the search script runs in a hidden frame. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      this.ready = new Promise((done) => {
        window.addEventListener("message", (event) => {
          if (event.source !== frame.contentWindow) return;
          if (event.data === "worker is ready") done(frame.contentWindow);
          else this.dispatchEvent(new MessageEvent("message", { data: event.data }));
        });
      });
      document.body.appendChild(frame);
      const page = frame.contentWindow.document;
      page.open();
      page.write(
        "<script>var postMessage = (data) => parent.postMessage(data, '*');</script>" +
          `<script src="${new URL(url, location)}"></script>` +
          "<script>parent.postMessage('worker is ready', '*');</script>",
      );
      page.close();
    }
    postMessage(data) {
      this.ready.then((worker) => worker.dispatchEvent(new MessageEvent("message", { data })));
    }
    terminate() {}
  };
}
