// What SAEDashboard's page script expects of the page it runs in.
"use strict";

// It is written for d3 6, whose listeners get the event first; in d3 5 they get the datum, and the event is global.
const on = d3.selection.prototype.on;
d3.selection.prototype.on = function (type, listener) {
  return on.call(this, type, function (datum) {
    listener.call(this, d3.event, datum);
  });
};

// For the content of elements, and for plotly's labels, which know no other entities.
window.escapeHtml = (text) => text.replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
