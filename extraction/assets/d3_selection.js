// The part of d3's interface (select, append, bind data) that SAEDashboard's page script calls, so that a page needs nothing
// from the network; and `escapeHtml`, for the places where that script puts a token into HTML.
"use strict";

class Selection {
  // groups: one list of elements per parent, as a data join makes them; parents: the element that each list belongs to.
  constructor(groups, parents) {
    this.groups = groups;
    this.parents = parents;
  }

  nodes() {
    return this.groups.flat();
  }

  empty() {
    return this.nodes().length === 0;
  }

  each(visit) {
    this.groups.forEach((group) => group.forEach((node, i) => visit.call(node, node.__data__, i, group)));
    return this;
  }

  // Calls set(node, value), where value may be a function of the element's datum and its index in its group.
  assign(value, set) {
    return this.each(function (datum, i, group) {
      set(this, typeof value === "function" ? value.call(this, datum, i, group) : value);
    });
  }

  select(selector) {
    const groups = this.groups.map((group) =>
      group.flatMap((node) => {
        const found = node.querySelector(selector);
        if (found && "__data__" in node) found.__data__ = node.__data__;
        return found ? [found] : [];
      })
    );
    return new Selection(groups, this.parents);
  }

  selectAll(selector) {
    const parents = this.nodes();
    return new Selection(parents.map((node) => [...node.querySelectorAll(selector)]), parents);
  }

  data(values) {
    this.missing = this.groups.map((group, j) => {
      const parent = this.parents[j];
      const list = typeof values === "function" ? values.call(parent, parent.__data__, j) : values;
      group.forEach((node, i) => (node.__data__ = list[i]));
      return list.slice(group.length);
    });
    return this;
  }

  enter() {
    return {
      append: (tag) => {
        const groups = this.missing.map((list, j) =>
          list.map((datum) => {
            const child = this.parents[j].appendChild(document.createElement(tag));
            child.__data__ = datum;
            return child;
          })
        );
        return new Selection(groups, this.parents);
      },
    };
  }

  append(tag) {
    const groups = this.groups.map((group) =>
      group.map((node) => {
        const child = node.appendChild(document.createElement(tag));
        if ("__data__" in node) child.__data__ = node.__data__;
        return child;
      })
    );
    return new Selection(groups, this.parents);
  }

  remove() {
    return this.each(function () {
      this.remove();
    });
  }

  attr(name, value) {
    if (value === undefined) return this.nodes()[0].getAttribute(name);
    return this.assign(value, (node, v) => (v === null ? node.removeAttribute(name) : node.setAttribute(name, v)));
  }

  style(name, value) {
    return this.assign(value, (node, v) => node.style.setProperty(name, v));
  }

  property(name) {
    return this.nodes()[0][name];
  }

  text(value) {
    return this.assign(value, (node, v) => (node.textContent = v));
  }

  html(value) {
    return this.assign(value, (node, v) => (node.innerHTML = v));
  }

  on(type, listener) {
    return this.each(function () {
      this.addEventListener(type, (event) => listener.call(this, event, this.__data__));
    });
  }
}

const root = document.documentElement;
const elements = (target) => (typeof target === "string" ? [...document.querySelectorAll(target)] : [target]);

window.d3 = {
  select: (target) => new Selection([elements(target).slice(0, 1)], [root]),
  selectAll: (target) => new Selection([elements(target)], [root]),
};

window.escapeHtml = (text) =>
  text.replace(/[&<>"']/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" })[c]);
