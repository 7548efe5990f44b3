// The theme that was chosen here before, ahead of the first paint; without one, the system's.
{
  const chosen = localStorage.getItem("nextarm.theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
}
