// Opens every page of the built site in Chromium and reports what goes wrong, as JSON:
//   node tests/browser.mjs /usr/bin/chromium _build/html
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [, , executablePath, root] = process.argv;
const QUIET = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];
const PHONE = { width: 390, height: 800 };
const faults = [];

function listPages(folder) {
  const all = readdirSync(folder, { recursive: true }).filter((name) => name.endsWith(".html"));
  return all.filter((name) => !name.startsWith("_static")).sort();
}

function watch(page, name) {
  page.on("pageerror", (error) => faults.push(`${name}: ${error.message}`));
  page.on("console", (message) => {
    const text = message.text();
    if (message.type() === "error" || text.includes("Could not create a view")) faults.push(`${name}: ${text}`);
  });
  page.on("request", (request) => {
    if (!/^(file|data|blob|about):/.test(request.url())) faults.push(`${name} asks ${request.url()}`);
  });
}

function shownFigures(page) {
  return page.locator(".jupyter-widgets img:visible, .jupyter-widgets .widget-html:visible").evaluateAll(
    (parts) => parts.map((part) => part.outerHTML).join(""));
}

async function chooseFromList(page, name) {
  const list = page.locator(".jupyter-widgets select").first();
  if ((await list.count()) === 0) return;
  const before = await shownFigures(page);
  await list.selectOption({ index: 1 });
  await page.waitForTimeout(300);
  if (before === (await shownFigures(page))) faults.push(`${name}: the list changes nothing`);
}

// A slider whose figure stays the same is a figure that does not work; its own readout changes in any case.
async function moveSlider(page, name) {
  const handle = page.locator(".noUi-handle").first();
  if ((await handle.count()) === 0) return;
  const before = await shownFigures(page);
  await handle.focus();
  await page.keyboard.press("ArrowRight");
  await page.waitForTimeout(300);
  if (before === (await shownFigures(page))) faults.push(`${name}: the slider changes nothing`);
  if (!(await handle.getAttribute("aria-label"))) faults.push(`${name}: the slider has no name`);
}

const profile = mkdtempSync(join(tmpdir(), "dori-browser-"));
const browser = await chromium.launchPersistentContext(profile, { executablePath, args: QUIET, headless: true });
const pages = listPages(root);
for (const name of pages) {
  const page = await browser.newPage();
  watch(page, name);
  await page.goto(pathToFileURL(join(root, name)).href, { waitUntil: "load" });
  if ((await page.locator('script[type="application/vnd.jupyter.widget-view+json"]').count()) > 0) {
    await page.locator(".jupyter-widgets").first().waitFor({ timeout: 20000 })
      .catch(() => faults.push(`${name}: the widgets do not appear`));
    await moveSlider(page, name);
    await chooseFromList(page, name);
  }
  await page.setViewportSize(PHONE);
  const sideways = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  if (sideways > 1) faults.push(`${name}: moves sideways by ${sideways} px on a phone`);
  await page.close();
}
await browser.close();
rmSync(profile, { recursive: true, force: true });
console.log(JSON.stringify({ pages: pages.length, faults }));
