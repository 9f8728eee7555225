// Opens every page of the built site in Chromium and reports what goes wrong, as JSON:
//   node tests/browser.mjs /usr/bin/chromium _build/html [folder for screenshots] [part of a page's name]
// Each page in light and dark: errors, outside requests, images without words, axe-core; every widget is moved;
// at a phone's width nothing moves sideways; the search finds a word.
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [, , executablePath, root, shots, only = ""] = process.argv;
const QUIET = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];
const DESK = { width: 1280, height: 900 };
const PHONE = { width: 390, height: 800 };
const SOUGHT = "Wanda";
const GRAVE = ["serious", "critical"];
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const faults = new Set();
const moved = { sliders: 0, lists: 0 };

function listPages(folder) {
  const all = readdirSync(folder, { recursive: true }).filter((name) => name.endsWith(".html"));
  return all.filter((name) => !name.startsWith("_static") && name.includes(only)).sort();
}

function watch(page, name) {
  page.on("pageerror", (error) => faults.add(`${name}: ${error.message}`));
  page.on("console", (message) => {
    const text = message.text();
    if (message.type() === "error" || text.includes("Could not create a view")) faults.add(`${name}: ${text}`);
  });
  page.on("request", (request) => {
    if (!/^(file|data|blob|about):/.test(request.url())) faults.add(`${name} asks ${request.url()}`);
  });
}

// What can be seen of the figure that a control belongs to; the control itself is left out.
function shownBy(control) {
  return control.evaluate((node) => {
    const parts = [...node.closest(".widget-vbox").querySelectorAll("img, .widget-html")];
    return parts.filter((part) => part.checkVisibility()).map((part) => part.outerHTML).join("");
  });
}

// A control whose figure stays the same is a figure that does not work; its own readout changes in any case.
async function moves(page, control, act, fault) {
  const before = await shownBy(control);
  await act();
  await page.waitForTimeout(250);
  if (before === (await shownBy(control))) faults.add(fault);
}

async function moveWidgets(page, name) {
  for (const handle of await page.locator(".noUi-handle:visible").all()) {
    await handle.focus();
    await moves(page, handle, () => page.keyboard.press("ArrowRight"), `${name}: a slider changes nothing`);
    if (!(await handle.getAttribute("aria-label"))) faults.add(`${name}: a slider has no name`);
    moved.sliders += 1;
  }
  for (const list of await page.locator(".jupyter-widgets select:visible").all()) {
    await moves(page, list, () => list.selectOption({ index: 1 }), `${name}: a list changes nothing`);
    moved.lists += 1;
  }
}

async function examine(page, name, scheme) {
  await page.evaluate(AXE);
  const found = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"], preload: false }));
  for (const { id, impact, nodes } of found.violations.filter(({ impact }) => GRAVE.includes(impact))) {
    const where = [...new Set(nodes.map(({ target }) => target.join(" ")))].slice(0, 3).join(" | ");
    faults.add(`${name} (${scheme}): ${impact} ${id}, ${nodes.length} times: ${where}`);
  }
  const wordless = await page.locator("img:not([alt])").count();
  if (wordless) faults.add(`${name}: ${wordless} images without alternative text`);
}

// The landing page answers on its first screen: the table of answers and the pictures end above its lower edge.
async function firstScreen(page, name) {
  for (const part of [".answers table", ".dori-stages:visible"]) {
    const box = await page.locator(part).first().boundingBox();
    if (!box || box.y + box.height > DESK.height) {
      faults.add(`${name}: ${part} ends at ${box && Math.round(box.y + box.height)} px, below the first screen`);
    }
  }
}

async function keep(page, name, kind) {
  if (!shots) return;
  mkdirSync(shots, { recursive: true });
  await page.screenshot({ path: join(shots, `${name.replaceAll("/", "-")}.${kind}.png`), fullPage: true });
}

async function look(context, name) {
  const page = await context.newPage();
  watch(page, name);
  await page.setViewportSize(DESK);
  for (const scheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme: scheme, reducedMotion: "reduce" });
    await page.goto(pathToFileURL(join(root, name)).href, { waitUntil: "load" });
    const theme = await page.evaluate(() => document.documentElement.dataset.theme);
    if (theme !== scheme) faults.add(`${name}: shows ${theme} where ${scheme} is asked for`);
    if ((await page.locator('script[type="application/vnd.jupyter.widget-view+json"]').count()) > 0) {
      await page.locator(".jupyter-widgets").first().waitFor({ timeout: 20000 })
        .catch(() => faults.add(`${name}: the widgets do not appear`));
      if (name === "index.html") await firstScreen(page, name);
      if (scheme === "light") await moveWidgets(page, name);
    }
    await examine(page, name, scheme);
    await keep(page, name, scheme);
  }
  await page.setViewportSize(PHONE);
  const sideways = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  if (sideways > 1) faults.add(`${name}: moves sideways by ${sideways} px on a phone`);
  await keep(page, name, "phone");
  await page.close();
}

async function search(context) {
  const page = await context.newPage(); // not watched: from file:// the excerpts of results cannot be fetched
  await page.goto(`${pathToFileURL(join(root, "search.html")).href}?q=${SOUGHT}`, { waitUntil: "load" });
  const results = page.locator("#search-results li a");
  await results.first().waitFor({ timeout: 20000 }).catch(() => {});
  if ((await results.count()) === 0) faults.add(`the search does not find ${SOUGHT}`);
  await page.close();
}

const profile = mkdtempSync(join(tmpdir(), "dori-browser-"));
const context = await chromium.launchPersistentContext(profile, { executablePath, args: QUIET, headless: true });
const pages = listPages(root);
for (const name of pages) await look(context, name);
await search(context);
await context.close();
rmSync(profile, { recursive: true, force: true });
console.log(JSON.stringify({ pages: pages.length, ...moved, faults: [...faults] }));
