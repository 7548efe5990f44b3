// Icons as SVG: no font has to have them.

import { html } from "./vendor/preact.js";

const PATHS = {
  key: html`<circle cx="8" cy="14" r="4" /><path d="M11 11l7-7M15 7l3 3" />`,
  light: html`<circle cx="11" cy="11" r="3.6" /><path d="M11 2.5v2M11 17.5v2M2.5 11h2M17.5 11h2M5 5l1.4 1.4M15.6 15.6L17 17M17 5l-1.4 1.4M6.4 15.6L5 17" />`,
  dark: html`<path d="M18 12.6A7.3 7.3 0 1 1 9.4 4a5.7 5.7 0 0 0 8.6 8.6z" />`,
  system: html`<circle cx="11" cy="11" r="7.2" /><path d="M11 3.8v14.4A7.2 7.2 0 0 0 11 3.8z" fill="currentColor" />`,
  close: html`<path d="M5 5l12 12M17 5L5 17" />`,
};

export const Icon = ({ of }) => html`
  <svg class="glyph" viewBox="0 0 22 22" width="18" height="18" fill="none" stroke="currentColor" stroke-width="1.7" stroke-linecap="round"
    stroke-linejoin="round" aria-hidden="true">${PATHS[of]}</svg>`;
