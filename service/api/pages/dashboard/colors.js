// One color per arm, the same in every chart and table of a bandit.

const COLORS = 10;

/**
 * name -> class ("arm-0" ...) of the arms of a bandit. arms: [{name, pulls}] in their order. Up to ten go by their order; of more,
 * the ten with the most decisions, and all others share "arm-other".
 */
export function colorsOf(arms) {
  const shown = arms.length <= COLORS ? arms : [...arms].sort((a, b) => (b.pulls || 0) - (a.pulls || 0)).slice(0, COLORS);
  const places = new Map(shown.map((arm, at) => [arm.name, `arm-${at}`]));
  return (name) => places.get(name) || "arm-other";
}

/** The present value of a CSS variable, for canvases. */
export function cssColor(variable) {
  return getComputedStyle(document.documentElement).getPropertyValue(variable).trim();
}

/** Calls `change` when the theme does; returns what ends it. */
export function onThemeChange(change) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const observer = new MutationObserver(change);
  system.addEventListener("change", change);
  observer.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  return () => {
    system.removeEventListener("change", change);
    observer.disconnect();
  };
}
